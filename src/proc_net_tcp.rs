//! Placeholder.
use crate::address::Endpoint;
/// S
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TcpState { Established, SynSent, SynRecv, FinWait1, FinWait2, TimeWait, Close, CloseWait, LastAck, Listen, Closing, NewSynRecv }
/// S
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Socket { pub local: Endpoint, pub remote: Endpoint, pub state: TcpState, pub inode: u32 }
