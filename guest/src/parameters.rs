//! The kernel command line: which devices there are, the guest's address, how many vCPUs to start.
//!
//! Unknown words are passed over, since a VMM may add its own; a known word with a wrong value keeps its default, for a guest that cannot
//! be reached could not say why.

/// Most virtio-mmio windows looked at.
pub const MOST_DEVICES: usize = 8;

/// One `virtio_mmio.device=SIZE@BASE:GSI`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest physical address of the window.
    pub base: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// What the command line says, with defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `lockstep.ip=A.B.C.D/N`, default 10.77.0.10/24.
    pub ip: [u8; 4],
    /// The prefix length of `lockstep.ip`.
    pub prefix: u8,
    /// `lockstep.gw=A.B.C.D`, default 10.77.0.1.
    pub gateway: [u8; 4],
    /// `lockstep.cpus=N`, default 1.
    pub cpus: u32,
    /// `lockstep.quiet`: no line on the console at boot.
    pub quiet: bool,
    /// virtio-mmio windows in order; `base` 0 ends the list.
    pub devices: [MmioDevice; MOST_DEVICES],
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            ip: [10, 77, 0, 10],
            prefix: 24,
            gateway: [10, 77, 0, 1],
            cpus: 1,
            quiet: false,
            devices: [MmioDevice::default(); MOST_DEVICES],
        }
    }
}

impl Parameters {
    /// Reads a command line.
    #[must_use]
    pub fn parse(line: &[u8]) -> Parameters {
        let mut parameters = Parameters::default();
        let mut devices = 0;
        for word in line.split(|byte| byte.is_ascii_whitespace() || *byte == 0) {
            if let Some(value) = word.strip_prefix(b"virtio_mmio.device=") {
                if let (Some(device), Some(slot)) = (mmio_device(value), parameters.devices.get_mut(devices)) {
                    *slot = device;
                    devices += 1;
                }
            } else if let Some(value) = word.strip_prefix(b"lockstep.ip=") {
                let mut halves = value.splitn(2, |&byte| byte == b'/');
                if let Some(ip) = halves.next().and_then(address) {
                    parameters.ip = ip;
                    if let Some(prefix @ 0..=32) = halves.next().and_then(|text| number(text, 10)) {
                        parameters.prefix = prefix as u8;
                    }
                }
            } else if let Some(value) = word.strip_prefix(b"lockstep.gw=") {
                parameters.gateway = address(value).unwrap_or(parameters.gateway);
            } else if let Some(value) = word.strip_prefix(b"lockstep.cpus=") {
                parameters.cpus = number(value, 10).map_or(1, |cpus| cpus.clamp(1, 16) as u32);
            } else if word == b"lockstep.quiet" {
                parameters.quiet = true;
            }
        }
        parameters
    }
}

/// `4K@0xd0000000:5`; the size is not needed, and an identifier after a second colon is passed over.
fn mmio_device(value: &[u8]) -> Option<MmioDevice> {
    let at = value.iter().position(|&byte| byte == b'@')?;
    let mut fields = value[at + 1..].split(|&byte| byte == b':');
    let base = fields.next()?;
    let base = match base.strip_prefix(b"0x") {
        Some(digits) => number(digits, 16)?,
        None => number(base, 10)?,
    };
    let gsi = u32::try_from(number(fields.next()?, 10)?).ok()?;
    (base != 0 && base < 1 << 32).then_some(MmioDevice { base, gsi })
}

fn address(text: &[u8]) -> Option<[u8; 4]> {
    let mut bytes = [0; 4];
    let mut fields = text.split(|&byte| byte == b'.');
    for byte in &mut bytes {
        *byte = u8::try_from(number(fields.next()?, 10)?).ok()?;
    }
    fields.next().is_none().then_some(bytes)
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(text).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_as_the_vmm_passes_it_is_understood() {
        let line = b"console=ttyS0 lockstep.ip=192.168.7.2/16 lockstep.gw=192.168.0.1 lockstep.cpus=4 virtio_mmio.device=4K@0xd0000000:5 \
            virtio_mmio.device=512@0xfeb00e00:12:0\0";
        let parameters = Parameters::parse(line);
        assert_eq!((parameters.ip, parameters.prefix, parameters.gateway, parameters.cpus), ([192, 168, 7, 2], 16, [192, 168, 0, 1], 4));
        assert_eq!(parameters.devices[0], MmioDevice { base: 0xd000_0000, gsi: 5 });
        assert_eq!(parameters.devices[1], MmioDevice { base: 0xfeb0_0e00, gsi: 12 });
        assert_eq!(parameters.devices[2].base, 0);
    }

    #[test]
    fn wrong_values_keep_their_defaults() {
        let line = b"lockstep.ip=1.2.3 lockstep.gw=1.2.3.4.5 lockstep.cpus=many virtio_mmio.device=4K@:5 virtio_mmio.device=x";
        assert_eq!(Parameters::parse(line), Parameters::default());
    }

    proptest! {
        #[test]
        fn no_line_is_harmful(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let cpus = Parameters::parse(&line).cpus;
            prop_assert!((1..=16).contains(&cpus));
        }
    }
}
