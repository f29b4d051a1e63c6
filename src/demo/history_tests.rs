//! Histories damaged on purpose: each kind of damage must be found, and a sound history must be found sound.

use super::*;

fn request(ask: Ask, answer: Answer) -> Request {
    Request { ask, answer, sent_ns: 0, answered_ns: 0 }
}

fn set(key: Key, value: Value) -> Request {
    request(Ask::Set(key, value), Answer::Done)
}

fn incr(count: i64) -> Request {
    request(Ask::Incr, Answer::Count(count))
}

fn end(values: &[(Key, Option<Value>)], counter: i64) -> Final {
    Final { values: values.iter().copied().collect(), counter: Some(counter) }
}

#[test]
fn a_sound_history_is_sound() {
    let history = [set(1, 10), incr(1), request(Ask::Get(1), Answer::Read(Some(10))), set(1, 11), set(2, 12), incr(2)];
    let findings = check(&history, &end(&[(1, Some(11)), (2, Some(12))], 2));
    assert_eq!(findings, Findings { acknowledged: 5, ..Findings::default() });
}

#[test]
fn a_lost_key_loses_every_write_to_it() {
    let findings = check(&[set(1, 10), set(1, 11), set(2, 12)], &end(&[(1, None), (2, Some(12))], 0));
    assert_eq!((findings.acknowledged, findings.lost), (3, 2));
}

#[test]
fn an_old_value_loses_the_writes_after_it() {
    let findings = check(&[set(1, 10), set(1, 11), set(1, 12)], &end(&[(1, Some(10))], 0));
    assert_eq!(findings.lost, 2);
}

#[test]
fn a_value_never_written_is_a_loss() {
    assert_eq!(check(&[set(1, 10)], &end(&[(1, Some(99))], 0)).lost, 1);
}

#[test]
fn an_unanswered_write_may_or_may_not_be_there() {
    let history = [set(1, 10), request(Ask::Set(1, 11), Answer::None)];
    for survivor in [10, 11] {
        assert_eq!(check(&history, &end(&[(1, Some(survivor))], 0)).lost, 0);
    }
    assert_eq!(check(&history, &end(&[(1, None)], 0)).lost, 1);
}

#[test]
fn an_unanswered_write_that_shows_up_after_a_later_acknowledged_one_is_reordered() {
    let history = [request(Ask::Set(1, 10), Answer::None), set(1, 11)];
    assert_eq!(check(&history, &end(&[(1, Some(10))], 0)).lost, 1);
}

#[test]
fn a_counter_that_falls_back_has_lost_what_was_told() {
    let findings = check(&[incr(1), incr(2), incr(3), incr(2)], &end(&[], 2));
    assert_eq!((findings.lost, findings.duplicated), (2, 0));
}

#[test]
fn a_counter_that_leaps_was_raised_twice() {
    let findings = check(&[incr(1), incr(3)], &end(&[], 3));
    assert_eq!((findings.lost, findings.duplicated), (0, 1));
}

#[test]
fn a_counter_may_stand_anywhere_between_acknowledged_and_sent() {
    let history = [incr(1), request(Ask::Incr, Answer::None), request(Ask::Incr, Answer::None)];
    for count in [1, 2, 3] {
        let findings = check(&history, &end(&[], count));
        assert_eq!((findings.lost, findings.duplicated), (0, 0), "{count}");
    }
    assert_eq!(check(&history, &end(&[], 0)).lost, 1);
    assert_eq!(check(&history, &end(&[], 4)).duplicated, 1);
    let more: Vec<Request> = history.iter().copied().chain([incr(4)]).collect();
    assert_eq!(check(&more, &end(&[], 4)), Findings { acknowledged: 2, ..Findings::default() });
}

#[test]
fn a_final_counter_that_differs_is_found() {
    assert_eq!(check(&[incr(1), incr(2)], &end(&[], 1)).lost, 1);
    assert_eq!(check(&[incr(1), incr(2)], &end(&[], 3)).duplicated, 1);
}

#[test]
fn a_stale_read_in_between_is_found_even_when_the_end_is_right() {
    let history = [set(1, 10), set(1, 11), request(Ask::Get(1), Answer::Read(Some(10))), request(Ask::Get(1), Answer::Read(None))];
    let findings = check(&history, &end(&[(1, Some(11))], 0));
    assert_eq!((findings.lost, findings.wrong_answers), (0, 2));
}

#[test]
fn answers_that_fit_no_request_are_found() {
    let history = [request(Ask::Set(1, 10), Answer::Count(1)), request(Ask::Incr, Answer::Done), request(Ask::Get(2), Answer::Nonsense)];
    assert_eq!(check(&history, &end(&[], 0)).wrong_answers, 3);
}

#[test]
fn what_cannot_be_read_is_not_proved() {
    let unread = Final { values: HashMap::new(), counter: None };
    assert_eq!(check(&[set(1, 10), incr(1)], &unread).unverified, 2);
}

#[test]
fn the_longest_gap_is_sought_around_the_death_only() {
    let at = |answered_ns| Request { answered_ns, ..set(1, answered_ns) };
    let history = [at(0), at(1000), at(1010), at(1100), at(1110), at(9000)];
    assert_eq!(longest_gap_ns(&history, 1050, 2000), Some(7890));
    assert_eq!(longest_gap_ns(&history, 1050, 1100), Some(90));
    assert_eq!(longest_gap_ns(&history[..1], 0, 2000), None);
}

#[test]
fn a_key_never_written_needs_no_proof_but_must_be_empty() {
    let read = |found| [request(Ask::Get(7), Answer::Read(found))];
    assert_eq!(check(&read(None), &end(&[], 0)), Findings::default());
    assert_eq!(check(&read(Some(3)), &end(&[], 0)).wrong_answers, 1);
}
