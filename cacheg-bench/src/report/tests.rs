use serde_json::json;

use super::*;

const HOSTILE: &str = "<script>alert('x')</script>\"><img src=http://evil/x onerror=y>&";

/// Two tasks, one line of three levels, codecs with one, a hostile one, three kinds of text; speeds; layers.
fn documents() -> Vec<Document> {
    let mut rows = Vec::new();
    let codecs = [
        ("cachegen-paper", Some(0), 4.3, 0.0035),
        ("cachegen-paper", Some(1), 3.4, 0.0144),
        ("cachegen-paper", Some(2), 2.6, 0.0731),
        ("q8", None, 8.5, 0.00006),
        ("q4", None, 4.5, 0.0195),
        ("f16", None, 16.0, 0.0),
        (HOSTILE, None, 5.0, 0.01),
    ];
    for task in ["continuation", "reread"] {
        for (codec, level, bits, kl) in codecs {
            for (context, factor) in [("novel-1", 0.5), ("novel-2", 0.7), ("code-1", 1.8), (HOSTILE, 1.0)] {
                let name = level.map_or_else(|| codec.to_owned(), |level| format!("{codec}@{level}"));
                rows.push(json!({
                    "name": name, "codec": codec, "level": level, "spec": format!("spec {codec}"), "task": task,
                    "context": context, "bits_per_value": bits + factor / 10.0, "kl": kl * factor, "top1_percent": 97.5,
                    "delta_ppl_percent": kl * factor * 90.0, "encode_s": 0.25, "decode_s": 0.125, "profile_bytes": 5_000_000,
                    "stream_bits_per_value": bits - 0.5, "side_bits_per_value": 0.5 + factor / 10.0,
                    "carried_bits_per_value": 0, "header_bits_per_value": 0.0, "set.step": HOSTILE,
                }));
            }
        }
    }
    let fields = json!({"command": format!("cacheg-bench quality {HOSTILE}"), "date": "2026-01-02T03:04:05Z",
        "machine": "m", "model": "/x/some.gguf", "model_sha256": "abc", "tokens": 1024, "kv_bytes_per_token": 23040});
    let object = |value: Value| value.as_object().unwrap().clone();
    let speeds = vec![
        json!({"table": "end_to_end", "name": "fast", "tables": "profile", "threads": 2, "decode_mb_s": 4321.0, "bits_per_value": 2.5}),
        json!({"table": "coders", "name": "rans", "decode_gsym_s": 5.4321, "size_over_entropy": 1.01}),
    ];
    let layers = (0..30).flat_map(|layer| {
        ["k", "v"]
            .map(|kind| json!({"layer": layer, "kind": kind, "sensitivity": f64::from(layer + 1) * 0.5}))
    });
    vec![
        Document::of_rows("quality.json", object(fields), rows),
        Document::of_rows(
            "throughput.json",
            object(json!({"command": "cacheg-bench throughput --json"})),
            speeds,
        ),
        Document::of_rows("calibrate.json", serde_json::Map::new(), layers.collect()),
    ]
}

/// As XML: the page is well-formed up to what only HTML allows.
fn xml(page: &str) -> String {
    let page = page.replace("<!DOCTYPE html>", "");
    let mut parts = page.split("<meta ");
    let mut xml = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (attributes, rest) = part.split_once('>').unwrap();
        xml += &format!("<meta {attributes}/>{rest}");
    }
    xml
}

#[test]
fn nothing_is_loaded_nothing_runs() {
    let page = render(HOSTILE, &documents()).unwrap();
    let xml = xml(&page);
    let document = roxmltree::Document::parse(&xml).unwrap();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        let loads = ["script", "img", "link", "iframe", "object", "embed", "base", "image", "use", "form"];
        assert!(!loads.contains(&name), "{name}");
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(!key.starts_with("on") && !["src", "srcset", "action", "data"].contains(&key), "{key}");
            assert!(key != "href" || value.starts_with('#'), "{value}");
            assert!(key != "style" || !value.contains("url"), "{value}");
        }
    }
    // All that is hostile is text, in all places.
    let texts = document.descendants().filter_map(|node| node.text());
    assert!(texts.filter(|text| text.contains("<script>")).count() > 10);
    assert!(!page.contains("@import") && !page.contains("url("));
    assert_eq!(document.descendants().filter(|node| node.has_tag_name("section")).count(), 9);
    assert_eq!(document.descendants().filter(|node| node.tag_name().name() == "svg").count(), 3);
}

#[test]
fn sections_appear_when_their_rows_are_there() {
    let all = documents();
    let page = |documents: &[Document]| render("t", documents).unwrap();
    let text = page(&all[..1]);
    for id in ["curves", "equal", "paper", "all", "kinds", "side", "speed", "reproduce"] {
        assert!(text.contains(&format!("section id=\"{id}\"")), "{id}");
    }
    assert!(!text.contains("section id=\"layers\""));
    let text = page(&all[1..2]);
    assert!(text.contains("4321") && text.contains("5.43") && !text.contains("section id=\"curves\""));
    // As `calibrate` and its check report.
    let layers = vec![
        json!({"layer": 0, "key_sensitivity": 0.5, "value_sensitivity": 0.25, "key_deviation": 3.0}),
        json!({"name": "key 3", "head": 1, "sigma": 0.1, "kl": 0.012, "predicted": 0.01, "ratio": 1.2}),
    ];
    let text = page(&[Document::of_rows("c", serde_json::Map::new(), layers)]);
    assert!(text.contains("0.500") && text.contains("0.250") && text.contains("key 3, head 1"));
    let text = page(&all[2..]);
    assert!(text.contains("section id=\"layers\"") && !text.contains("section id=\"speed\""));
    let empty = Document { rows: Vec::new(), ..all[0].clone() };
    assert!(render("t", &[empty]).unwrap_err().to_string().contains("nothing to report"));
}

#[test]
fn retrieval_has_a_picture_and_a_table() {
    let row = |codec: &str, context: &str, right: bool, more: f64| {
        json!({"name": codec, "codec": codec, "spec": codec, "task": "retrieval", "context": context,
            "bits_per_value": 4.0, "retrieval_percent": if right { 100.0 } else { 0.0 },
            "answer_equal_percent": 100.0, "label_nll": 1.0 + more, "delta_label_nll": more})
    };
    let rows = [row("a", "topics-0", true, 0.25), row("a", "topics-1", false, 0.375)];
    let documents = [Document::of_rows("q", serde_json::Map::new(), rows.to_vec())];
    let page = render("t", &documents).unwrap();
    assert!(page.contains("Finding the first topic") && page.contains("<svg"));
    let table = page.split("id=\"all\"").nth(1).unwrap();
    for text in ["found, %", "Δ NLL, nats", ">50.0<", ">0.312<"] {
        assert!(table.contains(text), "{text}: {table}");
    }
    assert!(!page.contains("id=\"equal\"") && !page.contains("id=\"paper\""));
}

#[test]
fn numbers_are_those_of_the_rows() {
    let page = render("t", &documents()).unwrap();
    // All codecs have all contexts, whose mean factor is 1: KL 0.02 lies between levels 1 and 2.
    let share = (0.02f64 / 0.0144).ln() / (0.0731f64 / 0.0144).ln();
    let bits = 3.5 - share * 0.8;
    assert!(page.contains(&format!("<td class=\"n\">{bits:.2}<span class=\"interval\">")), "{bits:.2}");
    // q4 at its own KL of 0.0195; q8 has no match.
    let share = (0.0195f64 / 0.0144).ln() / (0.0731f64 / 0.0144).ln();
    let ratio = 4.6 / (3.5 - share * 0.8);
    let paper = page.split("id=\"paper\"").nth(1).unwrap();
    assert!(paper.contains(&format!("{ratio:.2}<span")), "{ratio:.2}");
    let q8 = paper.split("<th scope=\"row\">q8</th>").nth(1).unwrap();
    assert!(q8.split("</tr>").next().unwrap().matches("–</span>").count() == 2, "{q8}");
    // 8.6 over 3.5 bits at level 1.
    assert!(paper.contains("2.46"), "{}", 8.6 / 3.5);
    assert!(page.contains("f16 (16.1 bits)"), "no damage, no place in a picture of logarithms");
    assert!(page.contains("23.6 MB"), "1024 tokens of 23040 bytes");
}
