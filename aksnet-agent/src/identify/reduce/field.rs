//! A *field* of foreign JSON: what should be there, or nothing, or something odd.
//!
//! An API server checks what it stores, but not what aggregated servers, webhooks and proxies make of it, and an agent
//! on every node must not stop at one object. So a field of the wrong type is read over and told, and never an error;
//! only JSON that is none at all is.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// What stood in a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Field<T> {
    /// Nothing, or `null`.
    #[default]
    Absent,
    /// What belongs there.
    Good(T),
    /// Something of another type.
    Odd,
}

impl<T> Field<T> {
    /// The value. Anything odd is noted under the field's name.
    pub(super) fn take(self, name: &'static str, odd: &mut Vec<&'static str>) -> Option<T> {
        match self {
            Self::Absent => None,
            Self::Good(value) => Some(value),
            Self::Odd => {
                odd.push(name);
                None
            }
        }
    }
}

impl<T> Field<Vec<Field<T>>> {
    /// The list's items that are as they should be. Anything odd is noted under the field's name.
    pub(super) fn items(
        self,
        name: &'static str,
        odd: &mut Vec<&'static str>,
    ) -> impl Iterator<Item = T> + use<T> {
        let items = self.take(name, odd).unwrap_or_default();
        let strange = items.iter().any(|item| matches!(item, Field::Odd));
        odd.extend(strange.then_some(name));
        items.into_iter().filter_map(|item| match item {
            Field::Good(value) => Some(value),
            Field::Absent | Field::Odd => None,
        })
    }
}

/// What can stand in a field: says which JSON types it is made of. `None` is odd.
pub(super) trait Shape: Sized {
    fn text(_: &str) -> Option<Self> {
        None
    }

    fn number(_: u64) -> Option<Self> {
        None
    }

    fn truth(_: bool) -> Option<Self> {
        None
    }

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Shape for String {
    fn text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Shape for u64 {
    fn number(number: u64) -> Option<Self> {
        Some(number)
    }
}

impl Shape for bool {
    fn truth(truth: bool) -> Option<Self> {
        Some(truth)
    }
}

impl<T: Shape> Shape for Vec<Field<T>> {
    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Self::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// A number or a string (apimachinery `util/intstr` `IntOrString`). Digits in quotes are a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Either {
    Number(u64),
    Text(String),
}

impl Shape for Either {
    fn text(text: &str) -> Option<Self> {
        Some(Self::Text(text.to_owned()))
    }

    fn number(number: u64) -> Option<Self> {
        Some(Self::Number(number))
    }
}

/// A map of strings, such as labels.
#[derive(Debug, Default)]
pub(super) struct Pairs(pub(super) Vec<(String, Field<String>)>);

impl Shape for Pairs {
    fn map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Some(Self(pairs)))
    }
}

impl<'de, T: Shape> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything(PhantomData))
    }
}

struct Anything<T>(PhantomData<T>);

fn field<T>(value: Option<T>) -> Field<T> {
    value.map_or(Field::Odd, Field::Good)
}

impl<'de, T: Shape> Visitor<'de> for Anything<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Self::Value, E> {
        Ok(field(T::truth(truth)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(field(T::number(number)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(field(u64::try_from(number).ok().and_then(T::number)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Field::Odd)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(field(T::text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::list(list).map(field)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::map(map).map(field)
    }
}

/// Reads a key as one of these names; nothing is allocated for the many that nobody reads.
pub(super) struct Names(pub(super) &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Names {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Names {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|name| **name == key).copied())
    }
}

/// A JSON object of which these fields are read. Of a key that stands there twice the last one counts, as in Go.
macro_rules! shape {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty = $key:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(in crate::identify::reduce) struct $name {
            $(pub(in crate::identify::reduce) $field: $crate::identify::reduce::field::Field<$type>,)+
        }

        impl $crate::identify::reduce::field::Shape for $name {
            fn map<'de, A: serde::de::MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
                let names = || $crate::identify::reduce::field::Names(&[$($key),+]);
                let mut read = Self::default();
                while let Some(key) = map.next_key_seed(names())? {
                    match key {
                        $(Some($key) => read.$field = map.next_value()?,)+
                        _ => {
                            map.next_value::<serde::de::IgnoredAny>()?;
                        }
                    }
                }
                Ok(Some(read))
            }
        }
    };
}

pub(super) use shape;

#[cfg(test)]
mod tests {
    use super::*;

    shape! {
        Thing {
            name: String = "name",
            size: u64 = "size",
            parts: Vec<Field<String>> = "parts",
        }
    }

    fn read(json: &str) -> Thing {
        let mut odd = Vec::new();
        let field: Field<Thing> = serde_json::from_str(json).unwrap();
        field.take("thing", &mut odd).unwrap()
    }

    #[test]
    fn what_is_of_another_type_is_odd_and_the_rest_is_used() {
        let thing = read(
            r#"{"name": {"a": [1, {"b": null}]}, "size": 7, "parts": ["x", null, 3, "y"], "more": [[]]}"#,
        );
        assert_eq!(thing.name, Field::Odd);
        assert_eq!(thing.size, Field::Good(7));
        let mut odd = Vec::new();
        let parts: Vec<String> = thing.parts.items("parts", &mut odd).collect();
        assert_eq!(parts, ["x", "y"]);
        assert_eq!(odd, ["parts"]);
    }

    #[test]
    fn null_is_absent_and_of_two_the_last_counts() {
        let thing = read(r#"{"name": "a", "name": "b", "size": -1, "parts": null}"#);
        assert_eq!(thing.name, Field::Good("b".to_owned()));
        assert_eq!(thing.size, Field::Odd);
        assert_eq!(thing.parts, Field::Absent);
    }

    #[test]
    fn a_list_where_an_object_belongs_is_odd_as_a_whole() {
        let field: Field<Thing> = serde_json::from_str(r#"[{"name": "a"}]"#).unwrap();
        assert!(matches!(field, Field::Odd));
    }
}
