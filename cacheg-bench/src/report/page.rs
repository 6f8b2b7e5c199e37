//! The page around the sections, and what they are built of.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::entries::Mean;
use super::text::digits;

/// A part of the report.
pub(crate) struct Section {
    pub(crate) id: &'static str,
    pub(crate) title: String,
    pub(crate) body: Markup,
}

/// Everything in one file: nothing is loaded, nothing runs.
pub(crate) fn page(title: &str, lead: &Markup, sections: &[Section]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                header {
                    h1 { (title) }
                    (lead)
                    nav { @for section in sections { a href={ "#" (section.id) } { (section.title) } } }
                }
                main {
                    @for section in sections {
                        section id=(section.id) { h2 { (section.title) } (section.body) }
                    }
                }
            }
        }
    };
    page.into_string()
}

/// A picture with what it shows in words.
pub(crate) fn figure(svg: String, alt: &str, caption: &Markup) -> Markup {
    html! {
        figure {
            div.picture role="img" aria-label=(alt) { (PreEscaped(svg)) }
            figcaption { (caption) }
        }
    }
}

/// A column: its title, and whether it has numbers.
pub(crate) type Head = (String, bool);

pub(crate) fn head(title: &str) -> Head {
    (title.to_owned(), true)
}

pub(crate) fn words(title: &str) -> Head {
    (title.to_owned(), false)
}

/// A table that scrolls by itself where the page is too narrow; the first column names the row.
pub(crate) fn table(heads: &[Head], rows: &[Vec<Markup>]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr { @for (title, number) in heads { th.n[*number] scope="col" { (title) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (index, cell) in row.iter().enumerate() {
                                @if index == 0 {
                                    th scope="row" { (cell) }
                                } @else {
                                    td.n[heads.get(index).is_some_and(|(_, number)| *number)] { (cell) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Nothing to say.
pub(crate) fn none() -> Markup {
    html! { span.none { "–" } }
}

/// A number, or nothing.
pub(crate) fn cell(x: Option<f64>) -> Markup {
    x.map_or_else(none, |x| html! { (digits(x)) })
}

/// A mean with its interval below.
pub(crate) fn mean_cell(mean: Option<Mean>) -> Markup {
    let Some(Mean { mean, interval }) = mean else { return none() };
    html! { (digits(mean)) (interval_below(interval.filter(|[low, high]| low < high))) }
}

pub(crate) fn interval_below(interval: Option<[f64; 2]>) -> Markup {
    html! { @if let Some([low, high]) = interval { span.interval { (digits(low)) " to " (digits(high)) } } }
}
