//! Page codecs over plain buffers.
//!
//! A codec turns a page into fewer bytes in the caller's buffer, and back. [`xbzrle`] sends only what changed
//! since the other side last saw the page. Output never reaches the size of the page; a page that does not
//! shrink is sent raw. A decoder takes its input for hostile: it checks all of it before it touches the page.
//!
//! Trade-off taken: codecs work on private copies of pages, because a running guest may write to its own page
//! at any moment; the copy costs less than an encoder that must survive bytes that change under it.
//!
//! **Deliberately absent:** the cache of pages already sent, framing, threads, I/O.
#![forbid(unsafe_code)]

pub mod xbzrle;
