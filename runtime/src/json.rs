//! JSON from outside the process: an object is read only from an object.
//!
//! serde's derived code accepts a list for a struct, the fields in order, so
//! `"globally_enabled":[true,true]` or `"relationships":[]` are valid values
//! without any field name. Go's `encoding/json`, which the originals use, refuses
//! them. [`Objects`] refuses them for every struct at every depth. The functions
//! of this module replace those of serde_json of the same name.
//!
//! Limit: serde buffers the content of `flatten`, `untagged` and internally tagged
//! types, which bypasses [`Objects`]. No type of the services is one of these.

use std::{fmt, io, marker::PhantomData};

use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde_json::{Error, Value};

/// Reads `T` from all of a text.
///
/// # Errors
/// The text is not JSON, or not a `T`.
pub fn from_str<'de, T: Deserialize<'de>>(json: &'de str) -> Result<T, Error> {
    read(serde_json::Deserializer::from_str(json), PhantomData)
}

/// Reads `T` from all of a body.
///
/// # Errors
/// The body is not JSON, or not a `T`.
pub fn from_slice<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, Error> {
    read(serde_json::Deserializer::from_slice(json), PhantomData)
}

/// Reads all of `json` with `seed`.
///
/// # Errors
/// `json` cannot be read, is not JSON, or not what `seed` reads.
pub fn from_reader<'de, S: DeserializeSeed<'de>>(
    json: impl io::Read,
    seed: S,
) -> Result<S::Value, Error> {
    read(serde_json::Deserializer::from_reader(json), seed)
}

fn read<'de, R: serde_json::de::Read<'de>, S: DeserializeSeed<'de>>(
    mut json: serde_json::Deserializer<R>,
    seed: S,
) -> Result<S::Value, Error> {
    let value = seed.deserialize(Objects(&mut json))?;
    json.end()?;
    Ok(value)
}

/// Reads `T` from a value.
///
/// # Errors
/// The value is not a `T`.
pub fn from_value<T: DeserializeOwned>(json: Value) -> Result<T, Error> {
    T::deserialize(Objects(json))
}

/// A deserializer, or a part of one, that reads structs from maps only.
#[derive(Debug)]
pub struct Objects<D>(pub D);

macro_rules! deserialize {
    ($($method:ident($($argument:ident: $type:ty),*)),+ $(,)?) => {$(
        fn $method<V: Visitor<'de>>(
            self,
            $($argument: $type,)*
            visitor: V,
        ) -> Result<V::Value, D::Error> {
            self.0.$method($($argument,)* Objects(visitor))
        }
    )+};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Objects<D> {
    type Error = D::Error;

    deserialize! {
        deserialize_any(), deserialize_bool(), deserialize_i8(), deserialize_i16(),
        deserialize_i32(), deserialize_i64(), deserialize_i128(), deserialize_u8(),
        deserialize_u16(), deserialize_u32(), deserialize_u64(), deserialize_u128(),
        deserialize_f32(), deserialize_f64(), deserialize_char(), deserialize_str(),
        deserialize_string(), deserialize_bytes(), deserialize_byte_buf(),
        deserialize_option(), deserialize_unit(), deserialize_unit_struct(name: &'static str),
        deserialize_newtype_struct(name: &'static str), deserialize_seq(),
        deserialize_tuple(length: usize),
        deserialize_tuple_struct(name: &'static str, length: usize), deserialize_map(),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]),
        deserialize_identifier(), deserialize_ignored_any(),
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Objects(visitor))
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($type:ty)),+ $(,)?) => {$(
        fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$method(value)
        }
    )+};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Objects<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    visit! {
        visit_bool(bool), visit_i8(i8), visit_i16(i16), visit_i32(i32), visit_i64(i64),
        visit_i128(i128), visit_u8(u8), visit_u16(u16), visit_u32(u32), visit_u64(u64),
        visit_u128(u128), visit_f32(f32), visit_f64(f64), visit_char(char), visit_str(&str),
        visit_borrowed_str(&'de str), visit_string(String), visit_bytes(&[u8]),
        visit_borrowed_bytes(&'de [u8]), visit_byte_buf(Vec<u8>),
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Objects(value))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Objects(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Objects(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Objects(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Objects(variant))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Objects<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Objects(value))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Objects<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Objects(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Objects<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(Objects(seed))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Objects(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Objects<A> {
    type Error = A::Error;
    type Variant = Objects<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, variant) = self.0.variant_seed(Objects(seed))?;
        Ok((value, Objects(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Objects<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Objects(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, Objects(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.newtype_variant_seed(StructVariant(visitor))
    }
}

/// The fields of a struct variant, whose content has no method for maps only.
struct StructVariant<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for StructVariant<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        value.deserialize_map(Objects(self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::{json, value::RawValue};

    use super::*;

    #[derive(Debug, PartialEq, Deserialize, Default)]
    #[serde(default)]
    struct Inner {
        on: bool,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Wrapped(Inner);

    #[derive(Debug, PartialEq, Deserialize)]
    enum Choice {
        Plain,
        One(Inner),
        Fields { on: bool },
        Two(u8, Inner),
    }

    #[derive(Debug, PartialEq, Deserialize, Default)]
    #[serde(default)]
    struct Outer {
        inner: Inner,
        maybe: Option<Inner>,
        list: Vec<Inner>,
        wrapped: Option<Wrapped>,
        map: BTreeMap<u8, Inner>,
        pair: Option<(u8, Inner)>,
        choice: Option<Choice>,
    }

    #[test]
    fn a_list_is_rejected_for_a_struct_at_any_depth() {
        for text in [
            "[{}]",
            r#"{"inner":[true]}"#,
            r#"{"inner":[]}"#,
            r#"{"maybe":[true]}"#,
            r#"{"list":[[true]]}"#,
            r#"{"wrapped":[true]}"#,
            r#"{"map":{"1":[true]}}"#,
            r#"{"pair":[1,[true]]}"#,
            r#"{"choice":{"One":[true]}}"#,
            r#"{"choice":{"Fields":[true]}}"#,
            r#"{"choice":{"Two":[1,[true]]}}"#,
        ] {
            serde_json::from_str::<Outer>(text).expect("serde_json alone takes it");
            let error = from_str::<Outer>(text).unwrap_err().to_string();
            assert!(error.starts_with("invalid type: sequence, expected "), "{text}: {error}");
            assert_eq!(from_slice::<Outer>(text.as_bytes()).unwrap_err().to_string(), error);
            let value = serde_json::from_str(text).unwrap();
            assert!(from_value::<Outer>(value).is_err(), "{text}");
        }
    }

    #[test]
    fn objects_read_as_before() {
        let on = || Inner { on: true };
        let json = json!({
            "inner": {"on": true, "unknown": [1, {"a": null}]}, "maybe": null,
            "list": [{"on": true}, {}], "wrapped": {"on": true}, "map": {"7": {"on": true}},
            "pair": [1, {"on": true}], "choice": {"Fields": {"on": true}},
        });
        let expected = Outer {
            inner: on(),
            maybe: None,
            list: vec![on(), Inner::default()],
            wrapped: Some(Wrapped(on())),
            map: BTreeMap::from([(7, on())]),
            pair: Some((1, on())),
            choice: Some(Choice::Fields { on: true }),
        };
        assert_eq!(from_str::<Outer>(&json.to_string()).unwrap(), expected);
        assert_eq!(from_value::<Outer>(json.clone()).unwrap(), expected);
        assert_eq!(from_str::<Value>(&json.to_string()).unwrap(), json);
        assert_eq!(from_str::<Choice>(r#""Plain""#).unwrap(), Choice::Plain);
        assert_eq!(from_str::<Choice>(r#"{"One":{"on":true}}"#).unwrap(), Choice::One(on()));
        let two = from_str::<Choice>(r#"{"Two":[2,{"on":true}]}"#).unwrap();
        assert_eq!(two, Choice::Two(2, on()));
    }

    #[test]
    fn raw_and_borrowed_text_stay_what_they_are() {
        #[derive(Deserialize)]
        struct Borrowing<'a> {
            text: &'a str,
            #[serde(borrow)]
            raw: &'a RawValue,
            owned: Box<RawValue>,
        }
        let read: Borrowing<'_> =
            from_str(r#"{"text":"a","raw":[ 1,"\ud83d"],"owned":{"b" :2}}"#).unwrap();
        assert_eq!((read.text, read.raw.get()), ("a", r#"[ 1,"\ud83d"]"#));
        assert_eq!(read.owned.get(), r#"{"b" :2}"#);
    }

    #[test]
    fn all_of_the_text_is_read() {
        let error = from_str::<Inner>("{} {}").unwrap_err().to_string();
        assert_eq!(error, "trailing characters at line 1 column 4");
        let error = from_slice::<Inner>(b"{}]").unwrap_err().to_string();
        assert_eq!(error, "trailing characters at line 1 column 3");
        let seed = PhantomData::<Inner>;
        assert_eq!(from_reader(&b"{\"on\":true}"[..], seed).unwrap(), Inner { on: true });
        assert!(from_reader(&b"[true]"[..], seed).is_err());
        assert!(from_reader(&b"{}x"[..], seed).is_err());
    }
}
