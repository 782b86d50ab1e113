//! Ports for servers on loopback: free ones, and who listens on one. Main functions: [`start_on_free_ports`],
//! [`listener_on`].

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use fs_err as fs;

use super::error::EngineError;

/// A port that was free may be taken by another process before a server binds it.
const START_ATTEMPTS: u32 = 3;

/// Starts a server on ports of [`free_ports`], again where it ended at once.
pub(super) async fn start_on_free_ports<Server>(
    start: impl AsyncFn() -> Result<Server, EngineError>,
) -> Result<Server, EngineError> {
    for _ in 1..START_ATTEMPTS {
        match start().await {
            Err(EngineError::Died { .. }) => {}
            outcome => return outcome,
        }
    }
    start().await
}

/// Distinct ports that are free on loopback right now.
pub(super) fn free_ports<const COUNT: usize>() -> std::io::Result<[u16; COUNT]> {
    let mut listeners = Vec::with_capacity(COUNT); // all at once, so that no port comes twice
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// As many distinct ports that are free on loopback right now.
///
/// # Errors
/// When the system gives none.
pub fn distinct_ports(count: usize) -> Result<Vec<u16>, EngineError> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners: std::io::Result<Vec<TcpListener>> = (0..count).map(|_| listen()).collect();
    let ports = listeners.and_then(|all| all.iter().map(|one| Ok(one.local_addr()?.port())).collect());
    ports.map_err(|source| EngineError::Spawn { command: "a listener on a free port".to_owned(), source })
}

/// Who listens on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    /// Nobody that the kernel tells of.
    Nobody,
    /// A process of the group that was asked about, as far as can be told.
    OfTheGroup,
    /// Another process, if only beside one of the group.
    Foreign,
}

/// Who listens on a TCP port of this machine, seen from a process group.
pub(super) fn listener_on(port: u16, group: u32) -> Listener {
    let mut sockets = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        sockets.extend(listening_sockets(&fs::read_to_string(table).unwrap_or_default(), port));
    }
    if sockets.is_empty() {
        return Listener::Nobody;
    }
    match sockets_of_group(group) {
        Some(of_the_group) if !sockets.is_subset(&of_the_group) => Listener::Foreign,
        _ => Listener::OfTheGroup,
    }
}

/// The numbers of the sockets that listen on a port, from the kernel's table (proc(5), `/proc/net/tcp`).
fn listening_sockets(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (_, hexadecimal) = address.rsplit_once(':')?;
        let matches = *state == LISTEN && u16::from_str_radix(hexadecimal, 16) == Ok(port);
        inode.parse().ok().filter(|_| matches)
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// The processes of a group.
pub(super) fn processes_of(group: u32) -> Vec<u32> {
    members_of(group).into_iter().map(|member| member.process).collect()
}

/// A process of a group. The kernel gives its number to another one once it has ended, but not with the same start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Its number.
    pub(super) process: u32,
    group: u32,
    /// When it began, in the kernel's ticks since the machine did.
    started: u64,
}

impl Member {
    /// A process as the kernel has it now (proc(5), `/proc/PID/stat`); none where there is no such process.
    fn of(process: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // Behind the name, which may hold anything: state, parent, group, and 17 more fields before the start.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self { process, group: fields.get(2)?.parse().ok()?, started: fields.get(19)?.parse().ok()? })
    }

    /// A process that had its number before it.
    #[cfg(test)]
    pub(super) fn begun_before(self) -> Self {
        Self { started: self.started - 1, ..self }
    }

    /// Whether it is still this process that has the number, and in its group.
    pub(super) fn is_there(self) -> bool {
        Self::of(self.process) == Some(self)
    }
}

/// The processes of a group, each as it can be told from a later one of its number.
pub(super) fn members_of(group: u32) -> Vec<Member> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Member::of).filter(|member| member.group == group).collect()
}

/// The numbers of all sockets that processes of a group hold; none if the kernel shows some to nobody.
fn sockets_of_group(group: u32) -> Option<BTreeSet<u64>> {
    let mut sockets = BTreeSet::new();
    for process in processes_of(group) {
        let files = std::fs::read_dir(format!("/proc/{process}/fd"));
        if files.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
            return None;
        }
        for file in files.into_iter().flatten().flatten() {
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            let number =
                target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
            sockets.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
    }
    Some(sockets)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_ports_of_one_server_differ() {
        let [first, second, third] = free_ports().unwrap();
        assert!(first != second && second != third && first != third);
    }

    #[test]
    fn a_listener_is_told_apart_by_its_process_group() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = rustix::process::getpgrp().as_raw_nonzero().get().cast_unsigned();
        assert_eq!(listener_on(port, own), Listener::OfTheGroup);
        assert_eq!(listener_on(port, u32::MAX), Listener::Foreign);
        drop(listener);
        // A process that another test is about to start holds it, too, until it is another program.
        let until = Instant::now() + Duration::from_mins(1);
        while listener_on(port, own) != Listener::Nobody {
            assert!(Instant::now() < until, "{:?}", listener_on(port, own));
            std::thread::yield_now();
        }
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0\n\
            1: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 20 4 30 10 -1\n\
            2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4713 1 0 100 0 0 10 0\n";
        assert_eq!(listening_sockets(table, 8080), [4711]);
        assert_eq!(listening_sockets("", 8080), Vec::<u64>::new());
    }
}
