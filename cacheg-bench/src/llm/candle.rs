//! candle's errors as ours.

use cacheg::Error;

/// An error of candle while a file is read: the file's fault, unless the system's.
pub(super) fn reading(error: candle_core::Error) -> Error {
    match error {
        candle_core::Error::Io(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            Error::Io { context: "reading the model".into(), source }
        }
        candle_core::Error::Io(_) => Error::corrupt("the file ends in the middle; is the download complete?"),
        other => Error::corrupt(first_line(&other)),
    }
}

/// An error of candle while it computes: shapes that do not fit.
pub(super) fn computing(error: candle_core::Error) -> Error {
    Error::data(first_line(&error))
}

/// Without the backtrace that candle may add.
pub(super) fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
