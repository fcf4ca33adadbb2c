//! What came of one check.

use std::net::SocketAddr;
use std::time::Duration;

use crate::event::WallTime;

/// What a check does one after the other. A check that follows a redirect does them again; times add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The name becomes addresses.
    Resolve,
    /// The connection is made.
    Connect,
    /// TLS is agreed on.
    Tls,
    /// The request is out, and nothing of the answer is in.
    Processing,
    /// The answer comes in.
    Transfer,
}

impl Phase {
    /// All phases in their order.
    pub const ALL: [Self; 5] = [Self::Resolve, Self::Connect, Self::Tls, Self::Processing, Self::Transfer];

    /// The name that users see; those of `blackbox_exporter`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Processing => "processing",
            Self::Transfer => "transfer",
        }
    }
}

/// How long each phase took; a phase that did not run has no time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases([Option<Duration>; Phase::ALL.len()]);

impl Phases {
    /// Adds time to a phase.
    pub fn add(&mut self, phase: Phase, time: Duration) {
        let sum = &mut self.0[phase as usize];
        *sum = Some(sum.unwrap_or_default() + time);
    }

    /// The time of a phase.
    #[must_use]
    pub const fn get(&self, phase: Phase) -> Option<Duration> {
        self.0[phase as usize]
    }

    /// Phases that ran, with their times.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, Duration)> {
        Phase::ALL.into_iter().zip(self.0).filter_map(|(phase, time)| Some((phase, time?)))
    }
}

macro_rules! error_codes {
    ($($variant:ident $name:literal $doc:literal;)*) => {
        /// Why a check failed, for attribution: `error_code` in metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode { $(#[doc = $doc] $variant,)* }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name that users see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it says, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

error_codes! {
    ResolveNotFound "resolve_not_found" "The name does not exist, or has no address.";
    ResolveFailed "resolve_failed" "The name servers refuse or fail.";
    ResolveTimeout "resolve_timeout" "The time was up while the name was looked up.";
    ConnectRefused "connect_refused" "Nobody listens there.";
    ConnectUnreachable "connect_unreachable" "There is no way there: no route, or it was answered as unreachable.";
    ConnectReset "connect_reset" "The connection was reset before it was made.";
    ConnectTimeout "connect_timeout" "The time was up while connecting.";
    ConnectFailed "connect_failed" "The connection could not be made for another reason.";
    TlsFailed "tls_failed" "TLS could not be agreed on.";
    TlsCertificate "tls_certificate" "The certificate is not trusted, not for this name, or not valid now or for long enough.";
    TlsTimeout "tls_timeout" "The time was up while TLS was agreed on.";
    ProcessingTimeout "processing_timeout" "The time was up before anything was answered.";
    TransferTimeout "transfer_timeout" "The time was up while the answer came in.";
    Reset "reset" "The connection was reset while it was used.";
    Closed "closed" "The connection was closed before the answer was whole.";
    Protocol "protocol" "What was answered is not what the protocol allows.";
    TooLarge "too_large" "The answer is longer than is read.";
    Status "status" "The status is not an expected one.";
    Header "header" "A header is not as expected.";
    Body "body" "The body, or what was said on the connection, is not as expected.";
    Watermark "watermark" "More is used than may be.";
    Redirect "redirect" "A redirect leads nowhere, or there are too many.";
    NotServing "not_serving" "The service says of itself that it does not serve.";
    UnknownService "unknown_service" "The server does not know the service.";
    GrpcStatus "grpc_status" "The call ended with another gRPC status than OK.";
    Denied "denied" "The agent is not allowed to look, or to go there.";
    Agent "agent" "The agent itself could not: no descriptor, no port, no memory. It is not held against the target.";
}

impl ErrorCode {
    /// Whether the time was up.
    #[must_use]
    pub const fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::ResolveTimeout
                | Self::ConnectTimeout
                | Self::TlsTimeout
                | Self::ProcessingTimeout
                | Self::TransferTimeout
        )
    }

    /// The code of a check whose time was up in `phase`.
    #[must_use]
    pub const fn timed_out_in(phase: Phase) -> Self {
        match phase {
            Phase::Resolve => Self::ResolveTimeout,
            Phase::Connect => Self::ConnectTimeout,
            Phase::Tls => Self::TlsTimeout,
            Phase::Processing => Self::ProcessingTimeout,
            Phase::Transfer => Self::TransferTimeout,
        }
    }
}

/// Why a check failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure.
    pub code: ErrorCode,
    /// In words, with what was found and what was expected.
    pub detail: Box<str>,
}

impl Failure {
    /// A failure.
    #[must_use]
    pub fn new(code: ErrorCode, detail: impl Into<Box<str>>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// What an error of a connection that was made means.
    #[must_use]
    pub fn of_stream(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let code = match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                ErrorCode::Reset
            }
            ErrorKind::UnexpectedEof => ErrorCode::Closed,
            _ => ErrorCode::Protocol,
        };
        Self::new(code, error.to_string())
    }
}

/// What was learned on the way, whether the check failed or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where it connected to at last.
    pub address: Option<SocketAddr>,
    /// The last HTTP status.
    pub http_status: Option<u16>,
    /// The version of HTTP of the last answer.
    pub http_version: Option<&'static str>,
    /// The status of gRPC, by its number.
    pub grpc_status: Option<u32>,
    /// What the service says of itself, by gRPC's name.
    pub serving: Option<&'static str>,
    /// Bytes of the last body, as they came in.
    pub body_bytes: Option<u64>,
    /// Redirects that were followed.
    pub redirects: u32,
    /// When the first certificate of the chain ends that does (CLOCK_REALTIME).
    pub certificate_until: Option<WallTime>,
    /// The version of TLS, such as `TLS 1.3`.
    pub tls_version: Option<&'static str>,
}

/// One check, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Nothing, or why it failed.
    pub result: Result<(), Failure>,
    /// From its start to its end.
    pub took: Duration,
    /// The parts of that time.
    pub phases: Phases,
    /// What was learned.
    pub facts: Facts,
}
