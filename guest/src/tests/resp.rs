//! The parser against whole, cut, wrong and random requests.

use super::*;
use proptest::prelude::*;
use std::format;
use std::vec;
use std::vec::Vec;

fn encode(args: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend(format!("${}\r\n", arg.len()).into_bytes());
        bytes.extend(arg);
        bytes.extend(b"\r\n");
    }
    bytes
}

fn parsed_args(parser: &Parser, bytes: &[u8]) -> Vec<Vec<u8>> {
    let args = parser.args(bytes);
    (0..args.len()).map(|index| args.get(index).to_vec()).collect()
}

proptest! {
    #[test]
    fn what_was_encoded_is_what_is_parsed(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..10), tail in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut bytes = encode(&args);
        let length = bytes.len();
        bytes.extend(tail);
        let mut parser = Parser::new();
        prop_assert_eq!(parser.parse(&bytes), Ok(Parsed::Complete(length)));
        prop_assert_eq!(parsed_args(&parser, &bytes), args);
    }

    #[test]
    fn every_cut_of_a_request_is_incomplete_and_asks_for_no_more_than_the_whole(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 1..6)) {
        let bytes = encode(&args);
        let mut parser = Parser::new();
        for cut in 0..bytes.len() {
            match parser.parse(&bytes[..cut]) {
                Ok(Parsed::Incomplete(need)) => prop_assert!(need > cut && need <= bytes.len(), "cut {} need {}", cut, need),
                other => prop_assert!(false, "cut {}: {:?}", cut, other),
            }
        }
    }

    #[test]
    fn random_bytes_never_panic_and_never_consume_more_than_there_is(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Parsed::Complete(length)) = Parser::new().parse(&bytes) {
            prop_assert!(length <= bytes.len() && length > 0);
        }
    }

    #[test]
    fn syntax_shaped_bytes_never_panic(bytes in "[*$0-9a\\-\r\n ]{0,60}") {
        if let Ok(Parsed::Complete(length)) = Parser::new().parse(bytes.as_bytes()) {
            prop_assert!(length <= bytes.len());
        }
    }

    #[test]
    fn integers_are_those_that_print_back(number in any::<i64>(), text in "[-+0-9]{0,21}") {
        prop_assert_eq!(parse_integer(format!("{number}").as_bytes()), Some(number));
        if let Some(value) = parse_integer(text.as_bytes()) {
            prop_assert_eq!(format!("{value}"), text);
        }
    }
}

#[test]
fn inline_requests_are_split_at_blanks() {
    let mut parser = Parser::new();
    let bytes = b"  SET  key value \r\nPING\r\n";
    assert_eq!(parser.parse(bytes), Ok(Parsed::Complete(19)));
    assert_eq!(parsed_args(&parser, bytes), [b"SET".to_vec(), b"key".to_vec(), b"value".to_vec()]);
    assert_eq!(parser.parse(b"\r\nPING"), Ok(Parsed::Complete(2)));
    assert!(parser.args(b"\r\n").is_empty());
}

#[test]
fn wrong_syntax_is_refused_by_name() {
    let cases: [(&[u8], ProtocolError); 9] = [
        (b"*x\r\n", ProtocolError::MultibulkLength),
        (b"*5000\r\n", ProtocolError::MultibulkLength),
        (b"*1\n\r\n", ProtocolError::MultibulkLength),
        (b"*1\r\n:5\r\n", ProtocolError::ExpectedDollar(b':')),
        (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$65537\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$99999999999999999999\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$3\r\nabcde", ProtocolError::BulkEnd),
        (b"*11111111111111111111111111111111111111", ProtocolError::MultibulkLength),
    ];
    for (bytes, error) in cases {
        assert_eq!(Parser::new().parse(bytes), Err(error), "{:?}", core::str::from_utf8(bytes));
    }
}

#[test]
fn a_value_of_the_largest_size_passes_and_a_request_above_the_bound_does_not() {
    let largest = [b"SET".to_vec(), b"k".to_vec(), vec![b'x'; MAX_BULK]];
    assert!(matches!(Parser::new().parse(&encode(&largest)), Ok(Parsed::Complete(_))));
    let too_many = vec![vec![b'x'; MAX_BULK]; 17];
    assert_eq!(Parser::new().parse(&encode(&too_many)), Err(ProtocolError::TooBig));
    // Refused before it is collected: the announced length is enough.
    let bytes = encode(&too_many);
    assert!(matches!(Parser::new().parse(&bytes[..bytes.len() - 2 * MAX_BULK]), Ok(Parsed::Incomplete(_)) | Err(ProtocolError::TooBig)));
    assert_eq!(Parser::new().parse(&vec![b'a'; MAX_INLINE]), Err(ProtocolError::InlineTooBig));
}
