//! What terminals see of [`super::ConsoleServer`].

use std::net::Shutdown;

use super::*;

fn server() -> (tempfile::TempDir, ConsoleServer) {
    let folder = tempfile::tempdir().unwrap();
    let server = ConsoleServer::start(&folder.path().join("console")).unwrap();
    (folder, server)
}

fn terminal(server: &ConsoleServer) -> UnixStream {
    let stream = UnixStream::connect(&server.path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Reads until `end` has been seen; everything read.
fn read_to(stream: &mut UnixStream, end: &str) -> String {
    let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&all).into_owned();
        if text.contains(end) {
            return text;
        }
        let count = stream.read(&mut bytes).expect(&text);
        assert!(count > 0, "closed after {text:?}");
        all.extend_from_slice(&bytes[..count]);
    }
}

#[test]
fn a_terminal_is_shown_the_past_and_then_the_present() {
    let (_folder, server) = server();
    server.writer().write_all(b"boot\r\n").unwrap();
    let mut first = terminal(&server);
    read_to(&mut first, "boot\r\n");
    server.writer().write_all(b"login: ").unwrap();
    read_to(&mut first, "login: ");
    assert_eq!(read_to(&mut terminal(&server), "login: "), "boot\r\nlogin: ");
}

#[test]
fn the_past_is_bounded_and_its_newest_part_is_kept() {
    let (_folder, server) = server();
    for line in 0..20_000 {
        server.writer().write_all(format!("line {line}\r\n").as_bytes()).unwrap();
    }
    // When one terminal has seen the end, it is the past to the next.
    read_to(&mut terminal(&server), "line 19999\r\n");
    let text = read_to(&mut terminal(&server), "line 19999\r\n");
    assert!(text.len() <= HISTORY && text.len() > HISTORY - 16, "{}", text.len());
}

#[test]
fn a_terminal_that_reads_nothing_loses_the_oldest_and_is_told() {
    let (_folder, server) = server();
    let mut slow = terminal(&server);
    let mut quick = terminal(&server);
    read_to(&mut slow, "taken the keyboard");
    // More than its queue and the socket's buffer hold; the quick reader paces the writer, so the server has seen all of it.
    let chunk = [b'x'; 1000];
    for round in 0..2000 {
        server.writer().write_all(&chunk).unwrap();
        server.writer().write_all(format!("<{round}>").as_bytes()).unwrap();
        read_to(&mut quick, &format!("<{round}>"));
    }
    let text = read_to(&mut slow, "<1999>");
    assert!(text.contains("bytes are left out") && text.len() < 2_000_000, "{} bytes", text.len());
}

#[test]
fn a_terminal_at_a_standby_is_told_that_it_cannot_type() {
    let (_folder, server) = server();
    let mut terminal = terminal(&server);
    terminal.write_all(b"ls\r").unwrap();
    read_to(&mut terminal, "does not run on this node");
}

#[test]
fn the_last_to_connect_has_the_keyboard_and_a_mere_reader_never_takes_it() {
    let (_folder, server) = server();
    let mut first = terminal(&server);
    let reader = terminal(&server);
    read_to(&mut first, "another terminal has taken the keyboard");
    reader.shutdown(Shutdown::Write).unwrap();
    let mut typist = terminal(&server);
    first.write_all(b"a").unwrap();
    typist.write_all(b"b").unwrap();
    // Without a machine the typist is told so; the first terminal was told of its loss before and hears nothing more.
    read_to(&mut typist, "does not run on this node");
    server.writer().write_all(b"end").unwrap();
    let text = read_to(&mut first, "end");
    assert!(!text.contains("does not run"), "{text}");
}

#[test]
fn terminals_beyond_the_bound_are_turned_away_with_a_word() {
    let (_folder, server) = server();
    server.writer().write_all(b"$").unwrap();
    let mut let_in: Vec<UnixStream> = (0..READERS).map(|_| terminal(&server)).collect();
    for_each(&mut let_in, |stream| drop(read_to(stream, "$")));
    let mut extra = terminal(&server);
    read_to(&mut extra, "connected already");
    assert_eq!(extra.read(&mut [0; 16]).unwrap(), 0, "closed");
}

fn for_each(streams: &mut [UnixStream], mut act: impl FnMut(&mut UnixStream)) {
    streams.iter_mut().for_each(&mut act);
}

#[test]
fn the_socket_is_this_user_s_alone_and_goes_with_the_node() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, server) = server();
    let path = folder.path().join("console");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let taken = ConsoleServer::start(&path).err().expect("taken").to_string();
    assert!(taken.contains("another node"), "{taken}");
    server.writer().write_all(b"the last words").unwrap();
    let mut terminal = terminal(&server);
    drop(server);
    read_to(&mut terminal, "the last words");
    assert!(!path.exists());
}

#[test]
fn a_socket_that_a_dead_node_left_is_replaced_and_any_other_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    drop(ConsoleServer::start(&stale).unwrap());

    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(ConsoleServer::start(&file).is_err());
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}
