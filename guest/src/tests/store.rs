//! The store against a model, and at its budget.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::format;
use std::vec;

#[derive(Clone, Debug)]
enum Step {
    Set(u8, Vec<u8>),
    Remove(u8),
    Push(u8, bool, Vec<u8>),
    Pop(u8, bool),
    Add(u8, i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let step = prop_oneof![
        (0u8..6, bytes()).prop_map(|(key, value)| Step::Set(key, value)),
        (0u8..6).prop_map(Step::Remove),
        (0u8..6, any::<bool>(), bytes()).prop_map(|(key, head, value)| Step::Push(key, head, value)),
        (0u8..6, any::<bool>()).prop_map(|(key, head)| Step::Pop(key, head)),
        (0u8..6, -5i64..5).prop_map(|(key, delta)| Step::Add(key, delta)),
    ];
    prop::collection::vec(step, 0..80)
}

#[derive(Clone, Debug, PartialEq)]
enum Model {
    Text(Vec<u8>),
    List(Vec<Vec<u8>>),
}

fn end(head: bool) -> End {
    if head { End::Head } else { End::Tail }
}

proptest! {
    #[test]
    fn any_sequence_agrees_with_a_plain_map_and_leaves_nothing_counted_when_emptied(steps in steps()) {
        let mut store = Store::new(1 << 20);
        let mut model: HashMap<u8, Model> = HashMap::new();
        for step in steps {
            match step {
                Step::Set(key, value) => {
                    store.set(&[key], &value).expect("room");
                    model.insert(key, Model::Text(value));
                }
                Step::Remove(key) => prop_assert_eq!(store.remove(&[key]), model.remove(&key).is_some()),
                Step::Push(key, head, value) => match model.entry(key).or_insert(Model::List(Vec::new())) {
                    Model::Text(_) => prop_assert_eq!(store.push(&[key], end(head), &value), Err(StoreError::WrongType)),
                    Model::List(list) => {
                        list.insert(if head { 0 } else { list.len() }, value.clone());
                        prop_assert_eq!(store.push(&[key], end(head), &value), Ok(list.len()));
                    }
                },
                Step::Pop(key, head) => match model.get_mut(&key) {
                    None => prop_assert_eq!(store.pop(&[key], end(head)), Ok(None)),
                    Some(Model::Text(_)) => prop_assert_eq!(store.pop(&[key], end(head)), Err(StoreError::WrongType)),
                    Some(Model::List(list)) => {
                        let taken = list.remove(if head { 0 } else { list.len() - 1 });
                        if list.is_empty() {
                            model.remove(&key);
                        }
                        prop_assert_eq!(store.pop(&[key], end(head)), Ok(Some(taken)));
                    }
                },
                Step::Add(key, delta) => {
                    let old = match model.get(&key) {
                        None => Ok(0),
                        Some(Model::Text(text)) => parse_integer(text).ok_or(StoreError::NotInteger),
                        Some(Model::List(_)) => Err(StoreError::WrongType),
                    };
                    let sum = old.and_then(|old| old.checked_add(delta).ok_or(StoreError::Overflow));
                    prop_assert_eq!(store.add(&[key], delta), sum);
                    if let Ok(sum) = sum {
                        model.insert(key, Model::Text(format!("{sum}").into_bytes()));
                    }
                }
            }
            prop_assert_eq!(store.len(), model.len());
        }
        for (key, value) in &model {
            match value {
                Model::Text(text) => prop_assert_eq!(store.get(&[*key]), Ok(Some(text.as_slice()))),
                Model::List(list) => {
                    let held = store.list(&[*key]).expect("a list").expect("present");
                    prop_assert!(held.iter().eq(list.iter()));
                }
            }
        }
        for key in model.keys() {
            store.remove(&[*key]);
        }
        prop_assert_eq!(store.used(), 0);
    }
}

#[test]
fn a_full_store_refuses_and_stays_as_it_was() {
    let mut store = Store::new(10_000);
    let mut kept = 0;
    while store.set(format!("key{kept}").as_bytes(), &[7; 500]).is_ok() {
        kept += 1;
    }
    assert!(kept > 5);
    let used = store.used();
    assert_eq!(store.set(b"other", &[7; 500]), Err(StoreError::Full));
    assert_eq!(store.set(b"key0", &vec![8; 9_000]), Err(StoreError::Full));
    assert_eq!(store.push(b"list", End::Tail, &[7; 500]), Err(StoreError::Full));
    assert_eq!((store.used(), store.len()), (used, kept));
    assert_eq!(store.get(b"key0"), Ok(Some(&[7; 500][..])));
    assert!(store.remove(b"key0"));
    assert_eq!(store.set(b"other", &[7; 500]), Ok(()));
}

#[test]
fn the_budget_bounds_any_mixture_of_writes() {
    let mut store = Store::new(100_000);
    for round in 0u32..20_000 {
        let key = format!("k{}", round % 97);
        let value = vec![1; (round as usize * 37) % 3000];
        let _ = match round % 3 {
            0 => store.set(key.as_bytes(), &value),
            1 => store.push(format!("l{}", round % 13).as_bytes(), End::Tail, &value).map(|_| ()),
            _ => store.pop(format!("l{}", round % 13).as_bytes(), End::Head).map(|_| ()),
        };
        assert!(store.used() <= store.budget(), "round {round}: {} used", store.used());
    }
}
