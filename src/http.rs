//! HTTP/1.1 and 1.0 (RFC 9110, RFC 9112) for a handful of resources: bytes in,
//! requests and answers out. No I/O.

/// Declares the status codes once: variant, code and reason phrase.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal $reason:literal,)+) => {
        /// The status codes we answer with (RFC 9110 section 15).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status { $($(#[$doc])* $name,)+ }

        impl Status {
            /// Every status.
            pub const ALL: [Self; [$($code),+].len()] = [$(Self::$name,)+];
            /// The codes as text, in the order of the variants.
            pub const CODES: [&'static str; [$($code),+].len()] = [$($code,)+];

            /// The code, as text of three digits.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// The reason phrase.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)+ }
            }
        }
    };
}

statuses! {
    /// The answer is the resource.
    Ok = "200" "OK",
    /// Not HTTP, or framed so that nobody can tell where it ends.
    BadRequest = "400" "Bad Request",
    /// Not for this client.
    Forbidden = "403" "Forbidden",
    /// No such resource.
    NotFound = "404" "Not Found",
    /// A method other than GET and HEAD.
    MethodNotAllowed = "405" "Method Not Allowed",
    /// The headers did not come in time.
    RequestTimeout = "408" "Request Timeout",
    /// The request line does not fit.
    UriTooLong = "414" "URI Too Long",
    /// The headers do not fit.
    HeadersTooLarge = "431" "Request Header Fields Too Large",
    /// The answer did not fit its buffer.
    InternalError = "500" "Internal Server Error",
    /// A transfer coding other than chunked.
    NotImplemented = "501" "Not Implemented",
    /// Not healthy.
    ServiceUnavailable = "503" "Service Unavailable",
    /// A major version other than 1.
    VersionNotSupported = "505" "HTTP Version Not Supported",
}

/// Bytes kept free before the body of an answer for its head.
const HEAD_ROOM: usize = 384;
/// Bytes a body can have in one piece.
pub const BODY_ROOM: usize = crate::limits::HTTP_RESPONSE - HEAD_ROOM - 8;
