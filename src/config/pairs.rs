//! `key=value,key=value` as options are written, and what to say about a key that does not exist. Pure (S7).

/// Likeness (Jaro-Winkler) under which a suggestion would mislead more than help.
const NEAR_ENOUGH: f64 = 0.7;

/// The known key most like `key`, if any is like it at all.
pub(super) fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = key.replace('_', "-").to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&written, k), k))
        .filter(|(likeness, _)| *likeness >= NEAR_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// What to say about `key`, which is none of `known`.
pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    let like = nearest(key, known.iter().copied()).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    format!("unknown key {key:?}{like} (there are {})", known.join(", "))
}

/// The pairs of `text`, in order: the value is `None` for a key without `=`. A comma in a value is written twice (`,,`), as QEMU has it.
pub(super) fn pairs(text: &str) -> Vec<(String, Option<String>)> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let doubled = c == ',' && rest.next_if_eq(&',').is_some();
        match parts.last_mut() {
            Some(part) if c != ',' || doubled => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    let pair = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (part, None),
    };
    parts.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Vec<(String, Option<String>)> {
        pairs(text)
    }

    fn pair(key: &str, value: Option<&str>) -> (String, Option<String>) {
        (key.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn pairs_are_read_in_order_and_flags_have_no_value() {
        assert_eq!(given("path=/a,readonly,log="), [pair("path", Some("/a")), pair("readonly", None), pair("log", Some(""))]);
    }

    #[test]
    fn a_doubled_comma_is_a_comma_and_an_equals_sign_may_be_part_of_a_value() {
        assert_eq!(given("path=/a,,b=c,serial=x"), [pair("path", Some("/a,b=c")), pair("serial", Some("x"))]);
    }

    #[test]
    fn an_unknown_key_is_told_with_the_nearest() {
        assert!(unknown_key("serail", &["path", "serial"]).contains("did you mean \"serial\"?"));
        assert!(!unknown_key("zzqq", &["path", "serial"]).contains("did you mean"));
    }
}
