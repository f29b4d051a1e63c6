//! One client connection: bytes in, requests, replies, bytes out, with bounds on everything that waits.
//!
//! Requests are parsed where they lie in the receive buffer; only one that has not arrived whole is copied aside. While replies wait for
//! room, no more requests are taken from that connection, so a client that does not read stops only itself (S7).

use alloc::vec::Vec;

use guest::command::{After, execute};
use guest::machine::Machine;
use guest::reply::Reply;
use guest::resp::{Parsed, Parser};
use guest::store::Store;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

/// Replies collected before they are handed on.
const REPLY_BATCH: usize = 128 * 1024;
/// A buffer up to this size is kept for the next request; a larger one is given back.
const KEPT_BUFFER: usize = 4096;

/// What all connections share.
pub struct Service<M> {
    /// The data.
    pub store: Store,
    /// The machine.
    pub machine: M,
    /// Commands executed.
    pub commands: u64,
    /// Set by SHUTDOWN.
    pub shutdown: bool,
    parser: Parser,
    reply: Reply,
    /// Bytes that connections hold aside, and may hold in all.
    waiting: usize,
    most_waiting: usize,
}

impl<M: Machine> Service<M> {
    /// A service over a store; `most_waiting` bounds what all connections together hold aside.
    pub fn new(store: Store, machine: M, most_waiting: usize) -> Service<M> {
        Service { store, machine, commands: 0, shutdown: false, parser: Parser::new(), reply: Reply::new(), waiting: 0, most_waiting }
    }

    /// Executes the requests in `bytes` until one is not whole, replies are enough for now, or the connection ends.
    fn run(&mut self, bytes: &[u8]) -> Run {
        let mut run = Run { consumed: 0, need: 0, stalled: false, close: false };
        while let Some(rest) = bytes.get(run.consumed..) {
            match self.parser.parse(rest) {
                Ok(Parsed::Incomplete(need)) => {
                    run.need = need;
                    break;
                }
                Ok(Parsed::Complete(length)) => {
                    run.consumed += length;
                    let args = self.parser.args(rest);
                    if args.is_empty() {
                        continue;
                    }
                    self.commands += 1;
                    match execute(args, &mut self.store, &mut self.machine, &mut self.reply) {
                        After::Continue => {}
                        After::Close => run.close = true,
                        After::Shutdown => {
                            run.close = true;
                            self.shutdown = true;
                        }
                    }
                }
                Err(error) => {
                    self.reply.begin();
                    self.reply.error(error.text());
                    self.reply.finish();
                    run.close = true;
                }
            }
            if run.close {
                break;
            }
            if self.reply.bytes().len() >= REPLY_BATCH {
                run.stalled = true;
                break;
            }
        }
        run
    }

    /// Adds to a buffer aside, within the bound. `false`: there is no room.
    fn hold(&mut self, buffer: &mut Vec<u8>, bytes: &[u8], wanted: usize) -> bool {
        let before = buffer.capacity();
        let room = wanted.max(buffer.len() + bytes.len());
        if room > before {
            if self.waiting - before + room > self.most_waiting || buffer.try_reserve_exact(room - buffer.len()).is_err() {
                return false;
            }
            self.waiting += buffer.capacity() - before;
        }
        buffer.extend_from_slice(bytes);
        true
    }

    /// Empties a buffer aside.
    fn forget(&mut self, buffer: &mut Vec<u8>) {
        buffer.clear();
        if buffer.capacity() > KEPT_BUFFER {
            self.waiting -= buffer.capacity();
            *buffer = Vec::new();
        }
    }
}

struct Run {
    consumed: usize,
    need: usize,
    stalled: bool,
    close: bool,
}

/// One connection.
pub struct Connection {
    /// Its socket.
    pub handle: SocketHandle,
    /// Bytes of a request that is not whole, or that could not be executed yet.
    input: Vec<u8>,
    /// Bytes that the request in `input` has at least.
    need: usize,
    /// Replies that did not fit into the send buffer, and how much of them has gone since.
    output: Vec<u8>,
    sent: usize,
    /// To be closed once the output is gone.
    closing: bool,
}

impl Connection {
    /// A connection that listens.
    pub fn new(handle: SocketHandle) -> Connection {
        Connection { handle, input: Vec::new(), need: 0, output: Vec::new(), sent: 0, closing: false }
    }

    /// Moves the connection on as far as it goes now; `true` when something was done.
    pub fn serve<M: Machine>(&mut self, socket: &mut Socket<'_>, port: u16, service: &mut Service<M>) -> bool {
        if !socket.is_open() {
            self.reset(service);
            let _ = socket.listen(port);
            return false;
        }
        if matches!(socket.state(), State::Listen | State::SynReceived) {
            return false;
        }
        let mut progress = self.flush(socket, service);
        while self.output.is_empty() && !self.closing && (socket.can_recv() || self.need == 0 && !self.input.is_empty()) {
            self.take_requests(socket, service);
            self.put_replies(socket, service);
            progress = true;
        }
        if self.output.is_empty() && socket.may_send() && (self.closing || !socket.may_recv()) {
            socket.close();
            progress = true;
        }
        if self.closing && socket.can_recv() {
            // What follows the end is read and dropped, so that closing does not turn into a reset that overtakes the last reply.
            let _ = socket.recv(|bytes| (bytes.len(), ()));
            progress = true;
        }
        progress
    }

    fn take_requests<M: Machine>(&mut self, socket: &mut Socket<'_>, service: &mut Service<M>) {
        let mut refused = false;
        if self.input.is_empty() {
            let _ = socket.recv(|bytes| {
                let run = service.run(bytes);
                self.closing |= run.close;
                if run.close {
                    return (bytes.len(), ());
                }
                if run.stalled {
                    return (run.consumed, ());
                }
                self.need = run.need;
                let rest = bytes.get(run.consumed..).unwrap_or(&[]);
                if !rest.is_empty() {
                    refused = !service.hold(&mut self.input, rest, run.need);
                }
                (bytes.len(), ())
            });
        } else {
            let _ = socket.recv(|bytes| {
                refused = !service.hold(&mut self.input, bytes, self.need);
                (bytes.len(), ())
            });
            if !refused && self.input.len() >= self.need {
                let input = core::mem::take(&mut self.input);
                let run = service.run(&input);
                self.input = input;
                self.closing |= run.close;
                self.need = if run.stalled { 0 } else { run.need };
                if run.close || run.consumed == self.input.len() {
                    service.forget(&mut self.input);
                } else {
                    self.input.drain(..run.consumed);
                }
            }
        }
        if refused {
            service.forget(&mut self.input);
            service.reply.begin();
            service.reply.error("OOM too many requests are in flight: the connection is closed");
            service.reply.finish();
            self.closing = true;
        }
    }

    fn put_replies<M: Machine>(&mut self, socket: &mut Socket<'_>, service: &mut Service<M>) {
        let reply = core::mem::take(&mut service.reply);
        let sent = socket.send_slice(reply.bytes()).unwrap_or(0);
        let rest = &reply.bytes()[sent..];
        if !rest.is_empty() && !service.hold(&mut self.output, rest, rest.len()) {
            socket.abort();
        }
        service.reply = reply;
        service.reply.clear();
    }

    /// Sends what waits; `true` when something went.
    fn flush<M: Machine>(&mut self, socket: &mut Socket<'_>, service: &mut Service<M>) -> bool {
        if self.output.is_empty() || !socket.can_send() {
            return false;
        }
        self.sent += socket.send_slice(self.output.get(self.sent..).unwrap_or(&[])).unwrap_or(0);
        if self.sent >= self.output.len() {
            service.forget(&mut self.output);
            self.sent = 0;
        }
        true
    }

    fn reset<M: Machine>(&mut self, service: &mut Service<M>) {
        service.forget(&mut self.input);
        service.forget(&mut self.output);
        (self.need, self.sent, self.closing) = (0, 0, false);
    }
}
