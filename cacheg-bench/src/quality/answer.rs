//! Whether an answer names a topic: string match, on words.

/// Words that topics are named with or without.
const ARTICLES: [&str; 3] = ["a", "an", "the"];

/// What counts of a text: its words in lower case, without punctuation and without leading articles.
pub(super) fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).skip_while(|word| ARTICLES.contains(&&word[..])).collect()
}

/// Whether all words of the topic stand in the text, one behind the other. A topic without words is nowhere.
pub(super) fn names(text: &str, topic: &str) -> bool {
    let (text, topic) = (words(text), words(topic));
    !topic.is_empty() && text.windows(topic.len()).any(|run| run == topic)
}

/// The answer in what a model wrote: its first line, up to a token that ends the turn.
pub(super) fn first_line(written: &str) -> &str {
    let written = written.trim_start();
    let end = ["\n", "<|"].iter().filter_map(|end| written.find(end)).min();
    written[..end.unwrap_or(written.len())].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_are_words() {
        assert_eq!(words("  The “Plant-Based” diet!"), ["plant", "based", "diet"]);
        assert_eq!(words("The the a-b"), ["b"], "all articles in front");
        assert_eq!(words("Out of the Middle Ages"), ["out", "of", "the", "middle", "ages"]);
        assert!(words(" …\n").is_empty() && words("the").is_empty());
    }

    #[test]
    fn topics_are_named_as_a_whole() {
        let topic = "The benefits of a plant-based diet";
        for good in [
            "The benefits of a plant-based diet",
            "benefits of a plant based diet.",
            "The first topic was \"the BENEFITS of a Plant-Based diet\", I think",
        ] {
            assert!(names(good, topic), "{good}");
        }
        for bad in [
            "",
            "The benefits of a diet",
            "The benefits of plant-based diet",
            "diet of a plant-based benefits of",
            "The benefits of a plant-based dietitian",
        ] {
            assert!(!names(bad, topic), "{bad}");
        }
        assert!(!names("anything", "") && !names("the", "The") && !names("", ""));
    }

    #[test]
    fn answers_end_with_their_line_or_turn() {
        for (written, answer) in [
            (" \n The role of art.\n USER: and", "The role of art."),
            ("Art <|im_end|>\nmore", "Art"),
            (" Art", "Art"),
            ("\n \n", ""),
            ("", ""),
        ] {
            assert_eq!(first_line(written), answer);
        }
    }
}
