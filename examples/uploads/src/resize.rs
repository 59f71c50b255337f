//! The slow part of an upload: one picture in, three sizes out.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, ImageResult};
use logmill_jobs::{JobResult, discard};

/// Largest first: each size is made from the one before, which is much cheaper than starting from
/// the original each time.
pub(crate) const SIZES: [(u32, u32); 3] = [(1200, 900), (800, 600), (150, 150)];

const JPEG_QUALITY: u8 = 85;

/// Starts the reason of a job that failed because of what the file is, which no retry can change.
pub(crate) const NO_IMAGE: &str = "not an image";

/// Reads `photo` and writes its three sizes to `folder`.
///
/// Repeating it is harmless, as a job must be that is delivered at least once: it overwrites each
/// file with the same content, and a file is complete from the moment it has its name. `job` keeps
/// the temporary files of two jobs apart.
pub(crate) fn make_sizes(photo: &Path, folder: &Path, job: u64) -> JobResult {
    // A file that can't be read now may be readable in a moment (a network drive), so this is an
    // ordinary error and gets a retry. Its content, once read, won't get better.
    let bytes = fs::read(photo).with_context(|| format!("reading {}", photo.display()))?;
    let mut picture = decode(photo, &bytes).map_err(discard)?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for (width, height) in SIZES {
        picture = fill(&picture, width, height);
        let mut jpeg = Vec::new();
        picture.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY))?;
        write_atomically(&file_of(folder, (width, height)), job, &jpeg)?;
    }
    Ok(())
}

/// True if every size is there.
pub(crate) fn is_complete(folder: &Path) -> bool {
    SIZES.iter().all(|&size| file_of(folder, size).is_file())
}

/// Decodes the picture upright; the error says in the decoder's words why that is impossible.
pub(crate) fn decode(photo: &Path, bytes: &[u8]) -> Result<DynamicImage, String> {
    let decode = || -> ImageResult<DynamicImage> {
        // The content decides the format; the name only where the content says nothing.
        let mut reader = ImageReader::new(Cursor::new(bytes));
        if let Ok(format) = ImageFormat::from_path(photo) {
            reader.set_format(format);
        }
        let mut decoder = reader.with_guessed_format()?.into_decoder()?;
        // Phones store a portrait as a landscape and a note to turn it.
        let orientation = decoder.orientation()?;
        let mut picture = DynamicImage::from_decoder(decoder)?;
        picture.apply_orientation(orientation);
        Ok(picture.into_rgb8().into())
    };
    decode().map_err(|error| format!("{NO_IMAGE}: {error}"))
}

/// Scales the picture to exactly this size, cutting off what the new shape has no room for.
///
/// Cuts first: scaling a long thin picture first would need memory beyond all measure.
fn fill(picture: &DynamicImage, width: u32, height: u32) -> DynamicImage {
    let (from_width, from_height) = (u64::from(picture.width()), u64::from(picture.height()));
    let (to_width, to_height) = (u64::from(width), u64::from(height));
    let keep_width = (from_height * to_width / to_height).clamp(1, from_width) as u32;
    let keep_height = (from_width * to_height / to_width).clamp(1, from_height) as u32;
    let left = (picture.width() - keep_width) / 2;
    let top = (picture.height() - keep_height) / 2;
    picture
        .crop_imm(left, top, keep_width, keep_height)
        .resize_exact(width, height, FilterType::CatmullRom)
}

fn file_of(folder: &Path, (width, height): (u32, u32)) -> PathBuf {
    folder.join(format!("{width}x{height}.jpg"))
}

/// Nobody ever sees half a file, even if the process dies here. (With power cuts in mind, one would
/// also sync the file and its folder before the job is acked.)
fn write_atomically(path: &Path, job: u64, content: &[u8]) -> anyhow::Result<()> {
    let unfinished = path.with_extension(format!("{job}.tmp"));
    fs::write(&unfinished, content)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("writing {}", path.display()))
}
