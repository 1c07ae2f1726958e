//! Labels, and what selects by them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The labels of an object, in order of key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Box<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let place = self.0.binary_search_by(|(other, _)| (**other).cmp(key)).ok()?;
        self.0.get(place).map(|(_, value)| value)
    }

    /// Keys and values, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        self.0.iter()
    }
}

impl From<&BTreeMap<String, String>> for Labels {
    fn from(labels: &BTreeMap<String, String>) -> Self {
        let shared = |(key, value): (&String, &String)| (key.as_str().into(), value.as_str().into());
        Self(labels.iter().map(shared).collect())
    }
}

/// What labels must be like: all requirements hold. None: any labels will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Box<[Requirement]>);

/// What one label must be like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// What its value must be.
    pub test: Test,
}

/// What the value of a label must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Test {
    /// One of these.
    In(Box<[Arc<str>]>),
    /// None of these; a label that is not there is none of them.
    NotIn(Box<[Arc<str>]>),
    /// Anything, but the label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Selector {
    /// All of `requirements`, in whatever order.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort();
        requirements.dedup();
        Self(requirements.into())
    }

    /// Whether it selects an object with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A key and values of which what it selects must have one: whoever has none need not be asked.
    pub(crate) fn anchor(&self) -> Option<(&Arc<str>, &[Arc<str>])> {
        let anchors = self.0.iter().filter_map(|requirement| match &requirement.test {
            Test::In(values) => Some((&requirement.key, &**values)),
            _ => None,
        });
        anchors.min_by_key(|(_, values)| values.len())
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.binary_search(value).is_ok()),
            Test::NotIn(values) => value.is_none_or(|value| values.binary_search(value).is_err()),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }
}

/// Reads as `app=web,tier in (a,b),!canary`, and as `any` where everything is selected.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("any");
        }
        for (place, Requirement { key, test }) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Test::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Test::Exists => write!(f, "{key}")?,
                Test::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs: BTreeMap<String, String> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Labels::from(&pairs)
    }

    fn selector(key: &str, test: Test) -> Selector {
        Selector::new(vec![Requirement { key: key.into(), test }])
    }

    #[test]
    fn each_operator_asks_what_the_api_says() {
        let values = || Box::from(["a".into(), "b".into()]);
        let (with_a, with_c, without) =
            (labels(&[("tier", "a")]), labels(&[("tier", "c")]), labels(&[("app", "a")]));
        let of = |test| {
            let selector = selector("tier", test);
            [&with_a, &with_c, &without].map(|labels| selector.matches(labels))
        };
        assert_eq!(of(Test::In(values())), [true, false, false]);
        assert_eq!(of(Test::NotIn(values())), [false, true, true]);
        assert_eq!(of(Test::Exists), [true, true, false]);
        assert_eq!(of(Test::DoesNotExist), [false, false, true]);
    }

    #[test]
    fn all_requirements_must_hold_and_none_selects_everything() {
        let both = Selector::new(vec![
            Requirement { key: "tier".into(), test: Test::Exists },
            Requirement { key: "app".into(), test: Test::In(Box::from(["web".into()])) },
        ]);
        assert!(both.matches(&labels(&[("app", "web"), ("tier", "x")])));
        assert!(!both.matches(&labels(&[("app", "web")])));
        assert!(Selector::default().matches(&Labels::default()));
        assert_eq!(both.to_string(), "app=web,tier");
        assert_eq!(Selector::default().to_string(), "any");
        assert_eq!(both.anchor().map(|(key, values)| (&**key, values.len())), Some(("app", 1)));
    }
}
