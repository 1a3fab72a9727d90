//! A device with every kind of field: identity, descriptions that add up, and hostile bodies.

use crate::{description_reader, load};
use limosa_vmstate::{Device, SliceInput, Unused, VmState, body_length};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "zoo", version = 4, minimum_version = 2)]
struct Zoo {
    flag: bool,
    signed: i32,
    #[vmstate(since = 3)]
    registers: [[u16; 3]; 2],
    #[vmstate(buffer)]
    buffer: [u8; 5],
    #[vmstate(bitmap)]
    bitmap: [u64; 2],
    #[vmstate(timer)]
    timers: [u64; 2],
    #[vmstate(equal)]
    model: u16,
    padding: Unused<3>,
    cage_count: u16,
    #[vmstate(count = cage_count, max = 5)]
    cages: Vec<Cage>,
    entrance: Cage,
    keeper_count: u8,
    #[vmstate(count = keeper_count, max = 4)]
    keepers: Vec<Keeper>,
    log_length: u32,
    #[vmstate(buffer, count = log_length, max = 40)]
    log: Vec<u8>,
    has_shop: bool,
    #[vmstate(exists = Self::has_shop, since = 4)]
    shop: u64,
    #[vmstate(subsection)]
    night: Option<Night>,
    #[vmstate(subsection(needed = Self::is_day))]
    day: Day,
}

/// Fixed in size, so described once.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "keeper")]
struct Keeper {
    number: i8,
    hours: [u8; 2],
}

/// Variable in size, with a subsection of its own.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "cage")]
struct Cage {
    animal_count: u8,
    #[vmstate(count = animal_count, max = 3)]
    animals: Vec<i64>,
    #[vmstate(subsection)]
    lock: Option<CageLock>,
}

#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "cage/lock")]
struct CageLock {
    code: u32,
}

#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "zoo/night", version = 7)]
struct Night {
    guards: [Keeper; 2],
    #[vmstate(subsection)]
    alarm: Option<NightAlarm>,
}

#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "zoo/night/alarm")]
struct NightAlarm {
    active: bool,
}

#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "zoo/day")]
struct Day {
    visitors: u64,
}

/// The same on both sides, as `equal` demands.
const MODEL: u16 = 0x4c49;

impl Zoo {
    fn has_shop(&self) -> bool {
        self.has_shop
    }

    fn is_day(&self) -> bool {
        self.day.visitors != 0
    }
}

prop_compose! {
    fn keeper()(number: i8, hours: [u8; 2]) -> Keeper {
        Keeper { number, hours }
    }
}

prop_compose! {
    fn cage()(animals in vec(any::<i64>(), 0..=3), code: Option<u32>) -> Cage {
        Cage { animal_count: animals.len() as u8, animals, lock: code.map(|code| CageLock { code }) }
    }
}

prop_compose! {
    fn night()(guards in [keeper(), keeper()], active: Option<bool>) -> Night {
        Night { guards, alarm: active.map(|active| NightAlarm { active }) }
    }
}

prop_compose! {
    fn zoo()(
        (flag, signed, registers, buffer, bitmap) in any::<(bool, i32, [[u16; 3]; 2], [u8; 5], [u64; 2])>(),
        timers: [u64; 2],
        cages in vec(cage(), 0..=5),
        entrance in cage(),
        keepers in vec(keeper(), 0..=4),
        log in vec(any::<u8>(), 0..=40),
        shop in prop::option::of(1..=u64::MAX),
        night in prop::option::of(night()),
        visitors in 0..3_u64,
    ) -> Zoo {
        Zoo {
            flag, signed, registers, buffer, bitmap, timers, model: MODEL, padding: Unused,
            cage_count: cages.len() as u16, cages, entrance,
            keeper_count: keepers.len() as u8, keepers,
            log_length: log.len() as u32, log,
            has_shop: shop.is_some(), shop: shop.unwrap_or(0),
            night, day: Day { visitors },
        }
    }
}

/// What a destination has before it loads: something else everywhere, but the same model.
fn used_zoo() -> impl Strategy<Value = Zoo> {
    zoo().prop_map(|zoo| Zoo { day: Day::default(), shop: 0, ..zoo })
}

/// Loads `body`; on success whatever is left was not looked at, and saving gives the same bytes again.
fn load_anything(body: &[u8], version: u32) -> Result<(), TestCaseError> {
    let mut device = Zoo { model: MODEL, ..Zoo::default() };
    let mut input = SliceInput::new(body);
    if let Err(error) = device.load(version, &mut input) {
        prop_assert!(error.path.as_str().starts_with("zoo"), "{}", error);
        prop_assert!(error.offset <= body.len() as u64, "{}", error);
    }
    prop_assert!(device.cages.len() <= 5 && device.keepers.len() <= 4 && device.log.len() <= 40);
    Ok(())
}

proptest! {
    #[test]
    fn what_is_loaded_is_what_was_saved(mut source in zoo(), mut destination in used_zoo()) {
        let body = source.save().unwrap().body;
        load(&mut destination, &body).unwrap();
        prop_assert_eq!(&destination, &source);
        prop_assert_eq!(destination.save().unwrap().body, body);
    }

    #[test]
    fn the_description_adds_up_to_the_body(mut source in zoo()) {
        let saved = source.save().unwrap();
        prop_assert_eq!(body_length(&saved.description).unwrap(), saved.body.len() as u64);
    }

    #[test]
    fn the_description_alone_suffices_to_read_the_body(mut source in zoo()) {
        let read = description_reader::read(source.save().unwrap());
        prop_assert_eq!(&read["signed"], source.signed);
        prop_assert_eq!(read.get("shop").is_some(), source.has_shop);
        prop_assert_eq!(read.get("zoo/night").is_some(), source.night.is_some());
        if let [.., last] = &source.cages[..] {
            let cage = match source.cages.len() {
                1 => &read["cages"],
                length => &read["cages"][length - 1],
            };
            prop_assert_eq!(&cage["animal_count"], last.animals.len());
            prop_assert_eq!(cage.get("cage/lock").is_some(), last.lock.is_some());
        }
    }

    #[test]
    fn a_body_cut_short_is_refused_or_lacks_whole_subsections(mut source in zoo(), cut: Index) {
        let body = source.save().unwrap().body;
        let mut device = Zoo { model: MODEL, ..Zoo::default() };
        let cut = &body[..cut.index(body.len())];
        if device.load(4, &mut SliceInput::new(cut)).is_ok() {
            source.night = device.night.clone();
            source.day = device.day.clone();
            prop_assert_eq!(&device, &source);
        }
    }

    #[test]
    fn a_damaged_body_is_loaded_or_refused_within_the_limits(
        mut source in zoo(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        version in 0..6_u32,
    ) {
        let mut body = source.save().unwrap().body;
        for (at, value) in damage {
            let at = at.index(body.len());
            body[at] = value;
        }
        load_anything(&body, version)?;
    }

    #[test]
    fn any_bytes_are_loaded_or_refused_within_the_limits(
        body in vec(prop_oneof![Just(0_u8), Just(1), Just(5), any::<u8>()], 0..300),
        version in 2..=4_u32,
    ) {
        load_anything(&body, version)?;
    }
}
