use serde_json::json;

use super::*;
use crate::quality::contexts;

const TOPIC: &str =
    "USER: I would like to discuss the topic of art. \n ASSISTANT: Sure. \n USER: Why? \n ASSISTANT: So.";

fn line(label: &Value, context: &str) -> String {
    json!({"prompt": format!("We talk. {START} {context} {END} Which was first? ASSISTANT:"), "label": label})
        .to_string()
}

/// Of the tiny model: bytes, mostly.
fn tokenizer() -> Tokenizer {
    Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/tiny.gguf")).unwrap()
}

#[test]
fn lines_become_records() {
    let record = Record::parse(&line(&json!(["Art", "Sports"]), TOPIC)).unwrap().unwrap();
    assert_eq!(record.context, format!("We talk. {START} {TOPIC}"));
    assert_eq!((&record.question[..], &record.label[..]), (" Now the record ends. Which was first?", "Art"));
    // No labels: a text like others.
    assert_eq!(Record::parse(r#"{"prompt": "a"}"#).unwrap(), None);
    assert_eq!(Record::parse(r#"{"prompt": "a", "label": null}"#).unwrap(), None);
}

#[test]
fn bad_records_are_refused() {
    for (label, context, why) in [
        (json!([]), TOPIC, "empty list"),
        (json!("Art"), TOPIC, "no list of topics"),
        (json!([7]), TOPIC, "no words"),
        (json!([" - the"]), TOPIC, "no words"),
        (json!(["Sports"]), TOPIC, "“Sports”, is not in the `prompt`"),
    ] {
        let error = records("f", &line(&label, context)).unwrap_err().to_string();
        assert!(error.starts_with("f, line 1: ") && error.contains(why), "{error}");
    }
    let error = Record::parse(r#"{"prompt": "of art", "label": ["Art"]}"#).unwrap_err().to_string();
    assert!(error.contains("no question") && error.contains(END), "{error}");
    // All have labels, or none.
    let (with, without) = (line(&json!(["Art"]), TOPIC), r#"{"prompt": "a"}"#);
    assert_eq!(records("f", &format!("{without}\n\n{without}\n")).unwrap(), []);
    assert_eq!(records("f", &format!("{with}\n{with}")).unwrap().len(), 2);
    let error = records("f", &format!("{with}\n\n{without}\n{with}")).unwrap_err().to_string();
    assert!(error.contains("line 3: ") && error.contains("no `label`"), "{error}");
}

#[test]
fn contexts_are_cut_between_turns() {
    let tokenizer = &tokenizer();
    let record = Record::parse(&line(&json!(["Art"]), TOPIC)).unwrap().unwrap();
    let texts = |form| {
        let Context { ids, question, .. } = record.cut("x", (tokenizer, form), 10_000).unwrap();
        let question = question.unwrap();
        [ids, question.ids, question.label_ids].map(|ids| tokenizer.decode(&ids).unwrap())
    };
    let asked = " Now the record ends. Which was first?";
    assert_eq!(texts(Form::Plain), [record.context.clone(), format!("{asked} ASSISTANT:"), " Art".into()]);
    let chat = format!("<|im_start|>user\n{}", record.context);
    let asked = format!("{asked}<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(texts(Form::ChatMl), [chat, asked, "Art".into()]);
    assert_eq!(Form::of(tokenizer).unwrap(), Form::Plain);

    let cut = |record: &Record, tokens| record.cut("x", (tokenizer, Form::Plain), tokens);
    let whole = cut(&record, 10_000).unwrap();
    // A token fewer is a turn fewer.
    assert_eq!(cut(&record, whole.ids.len()).unwrap().ids, whole.ids);
    let less = cut(&record, whole.ids.len() - 1).unwrap();
    assert!(tokenizer.decode(&less.ids).unwrap().ends_with("the topic of art. \n ASSISTANT: Sure."));
    let error = cut(&record, less.ids.len() - 1).err().unwrap().to_string();
    assert!(error.contains("“Art”, is lost") && error.contains("--tokens"), "{error}");
    // Where the first turns do not have it, either.
    let late = format!("USER: Hi. ASSISTANT: Hi. {TOPIC}");
    let record = Record::parse(&line(&json!(["Art"]), &late)).unwrap().unwrap();
    assert!(cut(&record, less.ids.len() - 5).err().unwrap().to_string().contains("is lost"));
}

#[test]
fn the_programs_own_records() {
    let all = records(NAME, RECORDS).unwrap();
    assert_eq!(all.len(), 10);
    for (index, record) in all.iter().enumerate() {
        assert!(all[..index].iter().all(|other| other.label != record.label), "{}", record.label);
        assert_eq!(
            record.context.matches("I would like to discuss the topic of").count(),
            3,
            "and the preamble"
        );
        assert!(record.question.ends_with("Do not summarize yourself."));
    }
    let tokenizer = tokenizer();
    let tests = read(&["default".into(), "x.txt".into()], &tokenizer, 1 << 20).unwrap();
    assert_eq!((tests.len(), &tests[9].name[..]), (10, "topics-9"));
    // A record's preamble alone is more than a calibration text may share with it.
    let calibration = [Context { name: "c".into(), ids: tests[3].ids.clone(), question: None }];
    let error = contexts::check_disjoint(&calibration, &tests[..1]).unwrap_err().to_string();
    assert!(error.contains("test text `topics-0`"), "{error}");
}
