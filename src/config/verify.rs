//! `--verify-memory` as people write it: nothing, all, or a size.
//!
//! Lives here: its forms and bounds. Not here: what is done with it (`checkpoint::verify`). Pure; refuses what it does not understand (S7).

use std::fmt;
use std::str::FromStr;

use checkpoint::VerifyMemory;
use serde::de::{self, Deserializer, Visitor};
use types::PAGE_SIZE;

use super::resolve::{ConfigError, value};
use super::units::{ByteSize, UnitError};

/// The smallest window. A smaller one saves nothing that can be measured beside the pause itself, and takes a day for a turn over a large guest; and someone who writes `1` means `1M`.
const LEAST: u64 = 256 << 10;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyOption {
    /// Nothing is compared.
    #[default]
    Off,
    /// All of memory at every epoch.
    All,
    /// So much at every epoch.
    Window(ByteSize),
}

impl VerifyOption {
    /// In pages, within the bounds.
    pub(super) fn resolve(self) -> Result<VerifyMemory, ConfigError> {
        let page = PAGE_SIZE as u64;
        match self {
            VerifyOption::Off => Ok(VerifyMemory::Off),
            VerifyOption::All => Ok(VerifyMemory::All),
            VerifyOption::Window(size) if size.0 >= LEAST && size.0.is_multiple_of(page) => {
                Ok(VerifyMemory::Window { pages: size.0 / page })
            }
            VerifyOption::Window(size) => {
                let least = ByteSize(LEAST);
                Err(value(
                    "--verify-memory",
                    size,
                    format!("whole pages of 4K and at least {least} of memory are compared at every epoch; write for example 1M, or all"),
                ))
            }
        }
    }
}

impl From<bool> for VerifyOption {
    fn from(on: bool) -> VerifyOption {
        if on { VerifyOption::All } else { VerifyOption::Off }
    }
}

impl FromStr for VerifyOption {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        Ok(match text {
            "all" | "true" => VerifyOption::All,
            "off" | "false" => VerifyOption::Off,
            size => VerifyOption::Window(size.parse()?),
        })
    }
}

struct Either;

impl Visitor<'_> for Either {
    type Value = VerifyOption;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, \"all\", \"off\" or a size such as \"1M\"")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<VerifyOption, E> {
        Ok(on.into())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<VerifyOption, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<VerifyOption, E> {
        let size = u64::try_from(bytes).map_err(|_| E::custom(format!("{bytes} is not a size: it is negative")))?;
        Ok(VerifyOption::Window(ByteSize(size)))
    }
}

impl<'de> serde::Deserialize<'de> for VerifyOption {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_means_what_it_says() {
        for (text, meant) in [
            ("all", VerifyMemory::All),
            ("true", VerifyMemory::All),
            ("off", VerifyMemory::Off),
            ("false", VerifyMemory::Off),
            ("1M", VerifyMemory::Window { pages: 256 }),
            ("256K", VerifyMemory::Window { pages: 64 }),
        ] {
            assert_eq!(text.parse::<VerifyOption>().unwrap().resolve().unwrap(), meant, "{text}");
        }
    }

    #[test]
    fn windows_that_are_too_small_or_not_of_pages_are_refused_with_a_remedy() {
        for text in ["0", "1", "128K", "300000"] {
            let refused = text.parse::<VerifyOption>().unwrap().resolve().unwrap_err().to_string();
            assert!(refused.contains("--verify-memory") && refused.contains("256K") && refused.contains("1M"), "{refused}");
        }
        assert!("some".parse::<VerifyOption>().is_err());
    }

    #[test]
    fn a_file_may_say_it_in_each_form() {
        for (text, meant) in [
            ("true", VerifyOption::All),
            ("false", VerifyOption::Off),
            ("\"all\"", VerifyOption::All),
            ("\"1M\"", VerifyOption::Window(ByteSize(1 << 20))),
            ("1048576", VerifyOption::Window(ByteSize(1 << 20))),
        ] {
            let options: crate::config::NodeOptions = toml::from_str(&format!("verify-memory = {text}")).unwrap();
            assert_eq!(options.verify_memory, Some(meant), "{text}");
        }
        assert!(toml::from_str::<crate::config::NodeOptions>("verify-memory = -1").is_err());
    }
}
