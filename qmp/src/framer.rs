//! Cuts a byte stream into JSON texts, by brackets and strings alone.
//!
//! QEMU ends its messages with a line end but does not ask for one: two commands may share a line, one may span
//! several. So the end of a text is where its outermost bracket closes. Whether the text is JSON is for the parser.

/// Collects bytes and hands out one JSON text at a time.
#[derive(Debug)]
pub(crate) struct Framer {
    /// Bytes not handed out yet; the current text begins at 0 unless `state` is [`State::Between`].
    buffer: Vec<u8>,
    /// How much of `buffer` has been looked at.
    scanned: usize,
    state: State,
    limit: usize,
}

/// A text longer than the receiver is ready to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between two texts.
    Between,
    /// Inside brackets, `depth` of them open, at least one.
    Nested { depth: usize, string: StringState },
    /// Inside a word that began without a bracket: no message, but it has to be answered.
    Bare,
}

#[derive(Clone, Copy, Debug)]
enum StringState {
    Outside,
    Inside,
    AfterBackslash,
}

/// Where the byte just looked at puts us.
enum Found {
    Nothing,
    /// The text ends with this byte.
    EndHere,
    /// The text ended before this byte.
    EndBefore,
}

impl Framer {
    /// An empty framer for texts of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), scanned: 0, state: State::Between, limit }
    }

    /// Adds bytes as they came from the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete text, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`TooLong`] if the current text exceeds the limit; the stream cannot be used any further.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            let was_between = matches!(self.state, State::Between);
            let found = self.look_at(byte);
            if was_between && !matches!(self.state, State::Between) {
                self.buffer.drain(..self.scanned);
                self.scanned = 0;
            }
            match found {
                Found::Nothing => self.scanned += 1,
                Found::EndHere => return Ok(Some(self.take(self.scanned + 1))),
                Found::EndBefore => return Ok(Some(self.take(self.scanned))),
            }
            if self.scanned > self.limit && !matches!(self.state, State::Between) {
                return Err(TooLong);
            }
        }
        if matches!(self.state, State::Between) {
            self.buffer.clear();
            self.scanned = 0;
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        self.scanned = 0;
        self.state = State::Between;
        std::mem::replace(&mut self.buffer, rest)
    }

    fn look_at(&mut self, byte: u8) -> Found {
        match &mut self.state {
            State::Between => match byte {
                byte if byte.is_ascii_whitespace() => {}
                b'{' | b'[' => self.state = State::Nested { depth: 1, string: StringState::Outside },
                // A lone closing bracket is a text of its own: one mistake, one answer.
                b'}' | b']' => {
                    self.state = State::Bare;
                    return Found::EndHere;
                }
                _ => self.state = State::Bare,
            },
            State::Bare => {
                if byte.is_ascii_whitespace() || matches!(byte, b'{' | b'[' | b'}' | b']') {
                    return Found::EndBefore;
                }
            }
            State::Nested { depth, string } => return inside(byte, depth, string),
        }
        Found::Nothing
    }
}

fn inside(byte: u8, depth: &mut usize, string: &mut StringState) -> Found {
    match (*string, byte) {
        (StringState::AfterBackslash, _) => *string = StringState::Inside,
        // JSON has no raw line end in a string: the quote was never closed, so start afresh on the next line.
        (StringState::Inside, b'\n') => return Found::EndHere,
        (StringState::Inside, b'\\') => *string = StringState::AfterBackslash,
        (StringState::Inside, b'"') => *string = StringState::Outside,
        (StringState::Inside, _) => {}
        (StringState::Outside, b'"') => *string = StringState::Inside,
        (StringState::Outside, b'{' | b'[') => *depth += 1,
        (StringState::Outside, b'}' | b']') => {
            *depth -= 1;
            if *depth == 0 {
                return Found::EndHere;
            }
        }
        (StringState::Outside, _) => {}
    }
    Found::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: &[&[u8]]) -> Vec<String> {
        let mut framer = Framer::new(64);
        let mut texts = Vec::new();
        for piece in pieces {
            framer.push(piece);
            while let Some(text) = framer.next().unwrap() {
                texts.push(String::from_utf8(text).unwrap());
            }
        }
        texts
    }

    #[test]
    fn two_messages_on_one_line_are_two() {
        assert_eq!(texts(&[b"{\"a\":1}{\"b\":2}\r\n"]), ["{\"a\":1}", "{\"b\":2}"]);
    }

    #[test]
    fn a_message_may_span_lines_and_any_split() {
        let whole: &[u8] = b" {\"a\":\n [1, {\"b\": \"}\\\"]\"}]}\r\n[] ";
        let expected = ["{\"a\":\n [1, {\"b\": \"}\\\"]\"}]}", "[]"];
        assert_eq!(texts(&[whole]), expected);
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(texts(&bytes), expected);
    }

    #[test]
    fn a_bare_word_ends_at_a_space_or_a_bracket() {
        assert_eq!(texts(&[b"hello {} 3\nx{}"]), ["hello", "{}", "3", "x", "{}"]);
    }

    #[test]
    fn stray_closing_brackets_are_answered_one_by_one() {
        assert_eq!(texts(&[b"} }\n"]), ["}", "}"]);
    }

    #[test]
    fn an_unclosed_quote_ends_with_its_line() {
        assert_eq!(texts(&[b"{\"a: 1}\n{}"]), ["{\"a: 1}\n", "{}"]);
    }

    #[test]
    fn a_text_beyond_the_limit_is_an_error_and_white_space_is_not() {
        let mut framer = Framer::new(8);
        framer.push(&[b' '; 100]);
        assert_eq!(framer.next(), Ok(None));
        framer.push(b"{\"a\":\"12345678");
        assert_eq!(framer.next(), Err(TooLong));
    }
}
