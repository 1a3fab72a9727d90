//! Moves memory through multifd channels in this process, and prints GB/s beside what sockets and memory can do at all.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use limosa_benches::{
    ChannelBenchError, ChannelKind, ChannelSetting, Layout, Pair, Spread, conclude, read_bandwidth,
};
use limosa_multifd::Codec;
use limosa_pages::ByteCount;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Channels beside bare sockets, in turns.
#[derive(Debug, Parser)]
struct Options {
    /// Numbers of channels.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    channels: Vec<u8>,
    /// Codecs: none, zlib-LEVEL, zstd-LEVEL (streams), lz4, packet-LEVEL (zstd without a stream), auto.
    #[arg(long, value_delimiter = ',', default_value = "none,zlib-1,zstd-1,lz4,packet-1,auto", value_parser = codec)]
    codecs: Vec<Codec>,
    /// What the source holds; all of it by default.
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    contents: Vec<ChannelKind>,
    /// What the memory is made of.
    #[arg(long, value_delimiter = ',', default_value = "huge")]
    layouts: Vec<LayoutWord>,
    /// Memory of each side, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u64,
    /// Transfers of each setting.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: u32,
    /// Give the destination no memory before, so that it is allocated on the way.
    #[arg(long)]
    fresh: bool,
    /// Where the source's file goes: a tmpfs with room for it.
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutWord {
    /// 2 MiB folios.
    Huge,
    /// 4 KiB pages.
    Small,
}

/// Figures of one number of channels, in GB/s.
struct Row {
    channels: u8,
    bare: Vec<f64>,
    read: Vec<f64>,
    codecs: Vec<Vec<f64>>,
}

fn main() -> ExitCode {
    conclude("channels", run(&Options::parse()).map_err(Into::into))
}

fn run(options: &Options) -> Result<(), ChannelBenchError> {
    let contents = if options.contents.is_empty() { &ChannelKind::ALL[..] } else { &options.contents };
    for layout in &options.layouts {
        for &content in contents {
            let layout = match layout {
                LayoutWord::Huge => Layout::Huge,
                LayoutWord::Small => Layout::Small,
            };
            let pair = Pair::new(&options.folder, content, layout, ByteCount(options.memory << 20))?;
            println!("{}, {layout:?} pages, GB/s and ratio to the limit", content.word());
            print_table(options, content, &measure(options, content, &pair)?);
        }
    }
    Ok(())
}

fn measure(options: &Options, content: ChannelKind, pair: &Pair) -> Result<Vec<Row>, ChannelBenchError> {
    // Zero pages are skipped where the destination has no memory yet; everything else finds its memory there.
    let populated = !options.fresh && !matches!(content, ChannelKind::Zero | ChannelKind::Untouched);
    let row = |&channels: &u8| {
        let codecs = vec![Vec::new(); options.codecs.len()];
        Row { channels, bare: Vec::new(), read: Vec::new(), codecs }
    };
    let mut rows: Vec<Row> = options.channels.iter().map(row).collect();
    let rate = |took: Duration| pair.memory().0 as f64 / took.as_secs_f64() / 1e9;
    for _ in 0..options.repetitions {
        for row in &mut rows {
            if content != ChannelKind::Untouched {
                pair.prepare(true)?;
                row.bare.push(rate(pair.bare(row.channels)?));
            }
            row.read.push(read_bandwidth(pair.memory(), usize::from(row.channels)) / 1e9);
            for (&codec, figures) in options.codecs.iter().zip(&mut row.codecs) {
                pair.prepare(populated)?;
                figures.push(rate(pair.transfer(ChannelSetting { channels: row.channels, codec })?));
                pair.compare()?;
            }
        }
    }
    Ok(rows)
}

fn print_table(options: &Options, content: ChannelKind, rows: &[Row]) {
    let codecs: String = options.codecs.iter().map(|codec| format!("{:>24}", word(*codec))).collect();
    println!("channels{:>20}{:>20}{codecs}", "bare socket", "reading memory");
    let median = |figures: &[f64]| Spread::of(figures.iter().copied());
    for row in rows {
        let cell = |figures: &[f64]| {
            median(figures).map_or("-".to_owned(), |Spread { median, least, most }| {
                format!("{median:.2} [{least:.1}-{most:.1}]")
            })
        };
        print!("{:>8}{:>20}{:>20}", row.channels, cell(&row.bare), cell(&row.read));
        let limit = median(if content == ChannelKind::Zero { &row.read } else { &row.bare });
        for figures in &row.codecs {
            let ratio = limit
                .zip(median(figures))
                .map_or(String::new(), |(limit, ours)| format!(" {:.2}", ours.median / limit.median));
            print!("{:>24}", cell(figures) + &ratio);
        }
        println!();
    }
    println!();
}

fn word(codec: Codec) -> String {
    match codec {
        Codec::None => "none".to_owned(),
        Codec::Zlib { level } => format!("zlib-{level}"),
        Codec::Zstd { level } => format!("zstd-{level}"),
        Codec::Lz4 => "lz4".to_owned(),
        Codec::Auto => "auto".to_owned(),
        Codec::ZstdPacket { level } => format!("packet-{level}"),
    }
}

fn codec(word: &str) -> Result<Codec, String> {
    let (name, level) = word.split_once('-').unwrap_or((word, "1"));
    let level = level.parse().map_err(|_| format!("{level} is no level"))?;
    match name {
        "none" => Ok(Codec::None),
        "zlib" => Ok(Codec::Zlib { level }),
        "zstd" => Ok(Codec::Zstd { level }),
        "lz4" => Ok(Codec::Lz4),
        "auto" => Ok(Codec::Auto),
        "packet" => Ok(Codec::ZstdPacket { level }),
        _ => Err(format!("no codec is called {name}")),
    }
}

fn kind(word: &str) -> Result<ChannelKind, String> {
    ChannelKind::ALL
        .into_iter()
        .find(|kind| kind.word() == word)
        .ok_or_else(|| format!("no content is called {word}"))
}
