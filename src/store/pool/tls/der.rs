//! A parser for the parts of a certificate that libpq's rules need: certificates of version 1, and names that stand
//! only in the subject.
//!
//! Refuses anything that is not DER in the shape of X.509. Decides nothing about trust.

use std::ops::Range;

/// The parts of a certificate, as slices of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// 1 to 3.
    pub version: u8,
    /// The signed bytes (TBSCertificate).
    pub signed: &'a [u8],
    /// The signature algorithm: the contents of an AlgorithmIdentifier.
    pub algorithm: &'a [u8],
    pub signature: &'a [u8],
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    /// Validity in seconds since 1970, both ends included.
    pub valid: Range<i64>,
    /// The whole SubjectPublicKeyInfo.
    pub key: &'a [u8],
    /// The last common name of the subject.
    pub common_name: Option<&'a str>,
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Tags of UTF8String, PrintableString, TeletexString, IA5String.
const TEXTS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];
/// OID 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Parses a certificate; `None` if it is malformed.
pub(super) fn read(certificate: &[u8]) -> Option<Parts<'_>> {
    let mut outer = Reader(Reader(certificate).take(SEQUENCE)?.inside);
    let tbs = outer.take(SEQUENCE)?;
    let algorithm = outer.take(SEQUENCE)?.inside;
    let signature = bits(outer.take(BIT_STRING)?.inside)?;
    let mut inner = Reader(tbs.inside);
    let version = match inner.peek() {
        Some(VERSION) => match Reader(inner.take(VERSION)?.inside).take(INTEGER)?.inside {
            [version @ 0..=2] => version + 1,
            _ => return None,
        },
        _ => 1,
    };
    inner.take(INTEGER)?;
    inner.take(SEQUENCE)?;
    let issuer = inner.take(SEQUENCE)?.inside;
    let mut validity = Reader(inner.take(SEQUENCE)?.inside);
    let valid = validity.time()?..validity.time()?;
    let subject = inner.take(SEQUENCE)?.inside;
    let key = inner.take(SEQUENCE)?.whole;
    let common_name = common_name(subject);
    Some(Parts { version, signed: tbs.whole, algorithm, signature, issuer, subject, valid, key, common_name })
}

fn common_name(subject: &[u8]) -> Option<&str> {
    let mut found = None;
    let mut names = Reader(subject);
    while names.peek().is_some() {
        let mut pair = Reader(Reader(names.take(SET)?.inside).take(SEQUENCE)?.inside);
        if pair.take(OBJECT)?.inside == COMMON_NAME && pair.peek().is_some_and(|tag| TEXTS.contains(&tag)) {
            found = std::str::from_utf8(pair.take(pair.peek()?)?.inside).ok();
        }
    }
    found
}

/// The bytes of a BIT STRING; `None` if it has unused bits.
fn bits(inside: &[u8]) -> Option<&[u8]> {
    inside.split_first().filter(|(unused, _)| **unused == 0).map(|(_, bytes)| bytes)
}

struct Element<'a> {
    whole: &'a [u8],
    inside: &'a [u8],
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element if it has this tag.
    fn take(&mut self, tag: u8) -> Option<Element<'a>> {
        let [found, first, rest @ ..] = self.0 else { return None };
        let (length, head) = match first {
            0..=0x7f => (usize::from(*first), 2),
            0x81..=0x83 => {
                let digits = usize::from(first & 0x7f);
                let length = rest.get(..digits)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (length, 2 + digits)
            }
            _ => return None,
        };
        let whole = self.0.get(..head + length).filter(|_| *found == tag)?;
        self.0 = &self.0[head + length..];
        Some(Element { whole, inside: &whole[head..] })
    }

    fn time(&mut self) -> Option<i64> {
        let tag = self.peek().filter(|tag| [UTC_TIME, GENERALIZED_TIME].contains(tag))?;
        let text = std::str::from_utf8(self.take(tag)?.inside).ok()?;
        let text = match tag {
            UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
            UTC_TIME => format!("19{text}"),
            _ => text.to_owned(),
        };
        let time = chrono::NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?;
        Some(time.and_utc().timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_or_longer_than_it_says_is_no_certificate() {
        let whole = [SEQUENCE, 3, INTEGER, 1, 5];
        assert_eq!(Reader(&whole).take(SEQUENCE).map(|element| element.inside), Some(&whole[2..]));
        for text in [&whole[..4], &whole[..1], &[], &[SEQUENCE, 0x80], &[SEQUENCE, 0x84, 0, 0, 0, 1, 0]] {
            assert!(Reader(text).take(SEQUENCE).is_none(), "{text:?}");
        }
        assert!(Reader(&whole).take(SET).is_none());
        let long: Vec<u8> = [SEQUENCE, 0x82, 1, 0].into_iter().chain([7; 256]).collect();
        assert_eq!(Reader(&long).take(SEQUENCE).map(|element| element.inside.len()), Some(256));
        assert_eq!(read(&whole), None);
    }

    #[test]
    fn both_kinds_of_time_are_read() {
        let time = |tag: u8, text: &str| {
            let bytes: Vec<u8> =
                [tag, u8::try_from(text.len()).unwrap()].into_iter().chain(text.bytes()).collect();
            Reader(&bytes).time()
        };
        assert_eq!(time(UTC_TIME, "700101000001Z"), Some(1));
        assert_eq!(time(UTC_TIME, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(time(GENERALIZED_TIME, "20500101000000Z"), Some(2_524_608_000));
        assert_eq!(time(UTC_TIME, "491231235959"), None);
        assert_eq!(time(INTEGER, "491231235959Z"), None);
    }
}
