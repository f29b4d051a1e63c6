//! The complete state of one vCPU: what it is, and reading and setting it in the order that KVM needs.
//!
//! Every vCPU ioctl loads and unloads the vCPU (about 6 us on the development machine whatever it carries), so they are few: general, segment and
//! control registers and events come from `KVM_RUN` itself (KVM_CAP_SYNC_REGS), all MSRs in one call. Guards S5: the orders below are requirements.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::tsc::{Reading, TscPlan};
use crate::{CpuModel, VmmError, cpu, raw};

/// Most MSRs that one call may carry (the kernel's MAX_IO_MSRS).
const MSRS_PER_CALL: usize = 256;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_ADJUST: u32 = 0x3b;
pub(crate) const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LMA: u64 = 1 << 10;
const SREGS2_PDPTRS_VALID: u64 = 1;

/// Offset of the timer's vector table entry in the LAPIC page, and its mode and mask bits.
const LAPIC_LVTT: usize = 0x320;
const LVTT_MODE: u32 = 3 << 17;
const LVTT_TSC_DEADLINE: u32 = 2 << 17;
const LVTT_MASKED: u32 = 1 << 16;

/// The complete state of one vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Running, halted, waiting for INIT or SIPI.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: kvm_sregs,
    /// PAE page directory pointers, where paging is in PAE mode and KVM can tell them: reading them from memory again could differ.
    pub pdptrs: Option<[u64; 4]>,
    /// FPU, vector and other extended state.
    pub xsave: Vec<u32>,
    /// XCR0.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// Local APIC.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers, as (index, value).
    pub msrs: Vec<(u32, u64)>,
    /// Pending exceptions, interrupts, NMIs.
    pub events: kvm_vcpu_events,
    /// What the vCPU's TSC adds to its host's, where KVM can tell.
    pub tsc_offset: Option<u64>,
    /// Set when the vCPU stands still because its guest asked for the end of the machine's run, and nobody has acted on it yet: the order must not be
    /// lost with the host.
    pub ending: Option<Ending>,
}

/// How a guest ends its machine's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Ending {
    /// It powered off.
    Shutdown = 1,
    /// It asked for a reset.
    Reset = 2,
}

/// What capture and restore need to know of the host's KVM; the same for all vCPUs, found out once.
#[derive(Clone, Debug)]
pub(crate) struct StateKit {
    /// MSRs that can be read and set here.
    pub msr_indices: Vec<u32>,
    /// Answer of KVM_CAP_XSAVE2; 0 without it.
    pub xsave_size: usize,
    /// KVM_CAP_SREGS2.
    pub sregs2: bool,
    /// KVM_CAP_SYNC_REGS for all three parts.
    pub sync_regs: bool,
    /// KVM_VCPU_TSC_OFFSET.
    pub tsc_offset: bool,
    /// KVM_CAP_XCRS. Without it the host's CPU has no XSAVE, nor has a guest that it can carry, and XCR0 is what it is at power-on.
    pub xcrs: bool,
    /// The guest's CPU has no XSAVE: KVM then refuses CR4.OSXSAVE, so no instruction of the guest can change XCR0 and it is read only once.
    pub fixed_xcr0: bool,
    /// Parts of the XSAVE area that the guest's CPU model has, where the model is not the host's own.
    pub xfeatures: Option<u64>,
    /// More than one vCPU: INIT and SIPI can arrive while a vCPU stands still.
    pub several: bool,
}

impl StateKit {
    /// The MSRs of KVM's list that a fresh vCPU lets us read, and set to what was read. The rest are constants of the host or features that the
    /// guest's CPU does not have, or that its model hides.
    pub(crate) fn usable_msrs(kvm: &Kvm, vcpu: &VcpuFd, model: CpuModel) -> Result<Vec<u32>, VmmError> {
        let list = kvm.get_msr_index_list().map_err(VmmError::kvm("KVM_GET_MSR_INDEX_LIST"))?;
        let mut usable: Vec<u32> = Vec::new();
        for index in cpu::candidates(list.as_slice()).iter().filter(|index| cpu::carried(model, **index)) {
            let mut msr = msrs(&[kvm_msr_entry { index: *index, ..Default::default() }])?;
            let readable = matches!(vcpu.get_msrs(&mut msr), Ok(1));
            // Setting the TSC would start KVM's synchronisation of TSCs between vCPUs.
            let settable = || *index == MSR_IA32_TSC || matches!(vcpu.set_msrs(&msr), Ok(1));
            if readable && settable() {
                usable.push(*index);
            } else {
                tracing::debug!(msr = format_args!("{index:#x}"), readable, "MSR left out of machine state");
            }
        }
        // The deadline is written last: it is compared with the TSC, and needs the LAPIC's timer mode.
        usable.sort_by_key(|index| (*index == MSR_IA32_TSC_DEADLINE, *index));
        Ok(usable)
    }
}

fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs, VmmError> {
    Msrs::from_entries(entries).map_err(|_| VmmError::Missing("room for the MSR list (more MSRs than KVM_GET_MSRS takes)"))
}

/// Reads a vCPU's state again and again with buffers made once.
pub(crate) struct Capturer {
    kit: StateKit,
    chunks: Vec<Msrs>,
    /// TSC offset and the TSC_ADJUST it was read under: the guest cannot move its TSC without changing that MSR, so the offset (a call of its own) is
    /// read again only when it changed.
    tsc_offset: Option<(u64, u64)>,
    /// XCR0, where it cannot change.
    xcrs: Option<kvm_xcrs>,
}

impl Capturer {
    pub(crate) fn new(kit: StateKit) -> Result<Capturer, VmmError> {
        let chunks = kit.msr_indices.chunks(MSRS_PER_CALL).map(|chunk| {
            let entries: Vec<_> = chunk.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
            msrs(&entries)
        });
        Ok(Capturer { chunks: chunks.collect::<Result<_, _>>()?, kit, tsc_offset: None, xcrs: None })
    }

    pub(crate) fn kit(&self) -> &StateKit {
        &self.kit
    }

    /// Forgets what was cached: the state was set from outside.
    pub(crate) fn state_was_set(&mut self) {
        self.tsc_offset = None;
        self.xcrs = None;
    }

    /// Reads everything. `synced` says that the last `KVM_RUN` left registers and events in the shared page and nothing was set since.
    pub(crate) fn capture(&mut self, vcpu: &mut VcpuFd, synced: bool) -> Result<VcpuState, VmmError> {
        // First: reading it can take a pending INIT or SIPI, which changes registers and the LAPIC.
        let mp_state = vcpu.get_mp_state().map_err(VmmError::kvm("KVM_GET_MP_STATE"))?;
        if synced && self.kit.several {
            refresh(vcpu)?;
        }
        let (regs, sregs, synced_events) = if synced {
            let sync = vcpu.sync_regs();
            (sync.regs, sync.sregs, Some(sync.events))
        } else {
            let regs = vcpu.get_regs().map_err(VmmError::kvm("KVM_GET_REGS"))?;
            (regs, vcpu.get_sregs().map_err(VmmError::kvm("KVM_GET_SREGS"))?, None)
        };
        let pae = sregs.cr0 & CR0_PG != 0 && sregs.cr4 & CR4_PAE != 0 && sregs.efer & EFER_LMA == 0;
        let pdptrs = if pae && self.kit.sregs2 {
            let sregs2 = raw::get_sregs2(vcpu).map_err(VmmError::io("KVM_GET_SREGS2"))?;
            (sregs2.flags & SREGS2_PDPTRS_VALID != 0).then_some(sregs2.pdptrs)
        } else {
            None
        };
        let xsave = raw::get_xsave(vcpu, self.kit.xsave_size).map_err(VmmError::io("KVM_GET_XSAVE2"))?;
        let xcrs = match self.xcrs {
            Some(xcrs) => xcrs,
            None if !self.kit.xcrs => power_on_xcrs(),
            None => vcpu.get_xcrs().map_err(VmmError::kvm("KVM_GET_XCRS"))?,
        };
        self.xcrs = Some(xcrs).filter(|_| self.kit.fixed_xcr0);
        let debug_regs = vcpu.get_debug_regs().map_err(VmmError::kvm("KVM_GET_DEBUGREGS"))?;
        let lapic = vcpu.get_lapic().map_err(VmmError::kvm("KVM_GET_LAPIC"))?;
        // After the LAPIC: a timer that fires in between leaves a deadline of 0, which restore turns into "now"; the other way round it would be lost.
        let msrs = self.read_msrs(vcpu)?;
        let tsc_offset = self.tsc_offset(vcpu, &msrs)?;
        let events = match synced_events {
            Some(events) => events,
            None => vcpu.get_vcpu_events().map_err(VmmError::kvm("KVM_GET_VCPU_EVENTS"))?,
        };
        Ok(VcpuState { mp_state, regs, sregs, pdptrs, xsave, xcrs, debug_regs, lapic, msrs, events, tsc_offset, ending: None })
    }

    fn read_msrs(&mut self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, VmmError> {
        let mut values = Vec::with_capacity(self.kit.msr_indices.len());
        for chunk in &mut self.chunks {
            let wanted = chunk.as_slice().len();
            let got = vcpu.get_msrs(chunk).map_err(VmmError::kvm("KVM_GET_MSRS"))?;
            if got != wanted {
                let source = std::io::Error::other(format!("MSR {:#x} can no longer be read", chunk.as_slice()[got].index));
                return Err(VmmError::Kvm { what: "KVM_GET_MSRS", source });
            }
            values.extend(chunk.as_slice().iter().map(|entry| (entry.index, entry.data)));
        }
        Ok(values)
    }

    fn tsc_offset(&mut self, vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<Option<u64>, VmmError> {
        if !self.kit.tsc_offset {
            return Ok(None);
        }
        let adjust = msrs.iter().find(|(index, _)| *index == MSR_IA32_TSC_ADJUST).map(|(_, value)| *value);
        if let (Some((offset, under)), Some(adjust)) = (self.tsc_offset, adjust)
            && under == adjust
        {
            return Ok(Some(offset));
        }
        let offset = raw::get_tsc_offset(vcpu).map_err(VmmError::io("reading the TSC offset"))?;
        self.tsc_offset = adjust.map(|adjust| (offset, adjust));
        Ok(Some(offset))
    }
}

/// Enters KVM_RUN and leaves it before the guest runs, so that the shared page holds the registers of now.
fn refresh(vcpu: &mut VcpuFd) -> Result<(), VmmError> {
    vcpu.set_kvm_immediate_exit(1);
    match vcpu.run() {
        Err(errno) if errno.errno() == libc::EINTR || errno.errno() == libc::EAGAIN => Ok(()),
        Err(errno) => Err(VmmError::kvm("KVM_RUN (to read registers)")(errno)),
        Ok(exit) => {
            let source = std::io::Error::other(format!("an access was still half done: {exit:?}"));
            Err(VmmError::Kvm { what: "KVM_RUN (to read registers)", source })
        }
    }
}

/// A vCPU's TSC as the guest reads it, with its offset; `None` where KVM does not tell offsets.
pub(crate) fn read_tsc(vcpu: &VcpuFd) -> Result<Option<Reading>, VmmError> {
    let Ok(offset) = raw::get_tsc_offset(vcpu) else { return Ok(None) };
    let mut msr = msrs(&[kvm_msr_entry { index: MSR_IA32_TSC, ..Default::default() }])?;
    match vcpu.get_msrs(&mut msr).map_err(VmmError::kvm("KVM_GET_MSRS"))? {
        0 => Ok(None),
        _ => Ok(Some(Reading { value: msr.as_slice()[0].data, offset })),
    }
}

impl VcpuState {
    /// The TSC at the capture, with its offset.
    pub(crate) fn tsc(&self) -> Option<Reading> {
        let value = self.msrs.iter().find(|(index, _)| *index == MSR_IA32_TSC).map(|(_, value)| *value)?;
        Some(Reading { value, offset: self.tsc_offset? })
    }
}

/// How a vCPU's time stamp counter is set.
enum SetTsc {
    /// By its offset.
    Offset(u64),
    /// By its MSR, so many cycles on from what was captured: where KVM does not tell offsets.
    Moved(u64),
    /// Not at all: it counts on.
    Keep,
}

/// Sets the complete state into a vCPU that never ran and has its CPUID.
pub(crate) fn restore(vcpu: &VcpuFd, kit: &StateKit, state: &VcpuState, tsc: TscPlan) -> Result<(), VmmError> {
    let set = match state.tsc_offset.filter(|_| kit.tsc_offset) {
        Some(offset) => SetTsc::Offset(offset.wrapping_add(tsc.offset_delta)),
        None => SetTsc::Moved(tsc.elapsed_cycles),
    };
    set_all(vcpu, kit, state, set)
}

/// Sets the state of power-on into a vCPU that has run. Its time stamp counter goes on as if the guest had never adjusted it.
pub(crate) fn reset(vcpu: &VcpuFd, kit: &StateKit, power_on: &VcpuState) -> Result<(), VmmError> {
    // Looking takes an INIT or SIPI that is on its way; what follows undoes it.
    vcpu.get_mp_state().map_err(VmmError::kvm("KVM_GET_MP_STATE"))?;
    let set = if kit.tsc_offset {
        let offset = raw::get_tsc_offset(vcpu).map_err(VmmError::io("reading the TSC offset"))?;
        let mut adjust = msrs(&[kvm_msr_entry { index: MSR_IA32_TSC_ADJUST, ..Default::default() }])?;
        let adjusted = match vcpu.get_msrs(&mut adjust) {
            Ok(1) => adjust.as_slice()[0].data,
            _ => 0,
        };
        SetTsc::Offset(offset.wrapping_sub(adjusted))
    } else {
        SetTsc::Keep
    };
    set_all(vcpu, kit, power_on, set)
}

/// XCR0 as it is after power-on: x87 state only (Intel SDM 1, 13.3).
const XCR0_AT_POWER_ON: u64 = 1;

/// What KVM would tell, had the host XSAVE.
fn power_on_xcrs() -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = XCR0_AT_POWER_ON;
    xcrs
}

/// The value of XCR0 in what KVM told; the only register of its kind there is.
fn xcr0(xcrs: &kvm_xcrs) -> Option<u64> {
    xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|register| register.xcr == 0).map(|register| register.value)
}

fn set_all(vcpu: &VcpuFd, kit: &StateKit, state: &VcpuState, tsc: SetTsc) -> Result<(), VmmError> {
    match state.pdptrs.filter(|_| kit.sregs2) {
        Some(pdptrs) => raw::set_sregs2(vcpu, &with_pdptrs(&state.sregs, pdptrs)).map_err(VmmError::io("KVM_SET_SREGS2"))?,
        None => vcpu.set_sregs(&state.sregs).map_err(VmmError::kvm("KVM_SET_SREGS"))?,
    }
    vcpu.set_regs(&state.regs).map_err(VmmError::kvm("KVM_SET_REGS"))?;
    if kit.xcrs {
        vcpu.set_xcrs(&state.xcrs).map_err(VmmError::kvm("KVM_SET_XCRS"))?;
    } else if xcr0(&state.xcrs).is_some_and(|xcr0| xcr0 != XCR0_AT_POWER_ON) {
        return Err(VmmError::Missing("XSAVE, which the guest uses (its CPU model must be one that both hosts can carry: --cpu)"));
    }
    let mut xsave = state.xsave.clone();
    xsave.resize(xsave.len().max(kit.xsave_size.max(raw::XSAVE_MIN).div_ceil(4)), 0);
    if let Some(features) = kit.xfeatures {
        keep_xfeatures(&mut xsave, features);
    }
    raw::set_xsave(vcpu, kit.xsave_size, &xsave).map_err(VmmError::io("KVM_SET_XSAVE"))?;
    vcpu.set_debug_regs(&state.debug_regs).map_err(VmmError::kvm("KVM_SET_DEBUGREGS"))?;
    vcpu.set_lapic(&state.lapic).map_err(VmmError::kvm("KVM_SET_LAPIC"))?;
    if let SetTsc::Offset(offset) = tsc {
        raw::set_tsc_offset(vcpu, offset).map_err(VmmError::io("setting the TSC offset"))?;
    }
    set_msrs(vcpu, state, &tsc)?;
    vcpu.set_mp_state(state.mp_state).map_err(VmmError::kvm("KVM_SET_MP_STATE"))?;
    vcpu.set_vcpu_events(&state.events).map_err(VmmError::kvm("KVM_SET_VCPU_EVENTS"))?;
    Ok(())
}

/// Puts parts of an XSAVE area that are not among `features` into their initial state. KVM before Linux 6.6 captures every part that the host has, and refuses
/// one that it does not have itself, although no guest of a baseline can have used it.
fn keep_xfeatures(xsave: &mut [u32], features: u64) {
    /// XSTATE_BV, behind the legacy area (Intel SDM 1, 13.4.2).
    const XSTATE_BV: usize = 512 / 4;
    if let Some([low, high]) = xsave.get_mut(XSTATE_BV..XSTATE_BV + 2) {
        *low &= features as u32;
        *high &= (features >> 32) as u32;
    }
}

fn set_msrs(vcpu: &VcpuFd, state: &VcpuState, tsc: &SetTsc) -> Result<(), VmmError> {
    let lvtt = lapic_register(&state.lapic, LAPIC_LVTT);
    let deadline_timer = lvtt & LVTT_MODE == LVTT_TSC_DEADLINE && lvtt & LVTT_MASKED == 0;
    let tsc_then = state.msrs.iter().find(|(index, _)| *index == MSR_IA32_TSC).map_or(1, |(_, value)| *value);
    let entries: Vec<kvm_msr_entry> = state
        .msrs
        .iter()
        .filter(|(index, _)| *index != MSR_IA32_TSC || matches!(tsc, SetTsc::Moved(_)))
        .map(|(index, value)| {
            let data = match *index {
                MSR_IA32_TSC => match tsc {
                    SetTsc::Moved(cycles) => value.wrapping_add(*cycles),
                    SetTsc::Offset(_) | SetTsc::Keep => *value,
                },
                // It reads 0 once the timer has expired, even when its interrupt has not been delivered yet; a timer that was not armed
                // gives one spurious tick, which is harmless.
                MSR_IA32_TSC_DEADLINE if *value == 0 && deadline_timer => tsc_then,
                _ => *value,
            };
            kvm_msr_entry { index: *index, data, ..Default::default() }
        })
        .collect();
    for chunk in entries.chunks(MSRS_PER_CALL) {
        let set = vcpu.set_msrs(&msrs(chunk)?).map_err(VmmError::kvm("KVM_SET_MSRS"))?;
        if let Some(refused) = chunk.get(set) {
            return Err(VmmError::Restore(format!(
                "this host's KVM refuses the value {:#x} for MSR {:#x}; both hosts need the same CPU model and kernel configuration",
                refused.data, refused.index
            )));
        }
    }
    Ok(())
}

fn lapic_register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| lapic.regs[offset + byte] as u8))
}

fn with_pdptrs(sregs: &kvm_sregs, pdptrs: [u64; 4]) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: sregs.cs,
        ds: sregs.ds,
        es: sregs.es,
        fs: sregs.fs,
        gs: sregs.gs,
        ss: sregs.ss,
        tr: sregs.tr,
        ldt: sregs.ldt,
        gdt: sregs.gdt,
        idt: sregs.idt,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        flags: SREGS2_PDPTRS_VALID,
        pdptrs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_vector_state_that_a_model_hides_are_not_carried() {
        let mut xsave = vec![u32::MAX; 1024];
        keep_xfeatures(&mut xsave, 0b111);
        assert_eq!((xsave[127], xsave[128], xsave[129], xsave[130]), (u32::MAX, 0b111, 0, u32::MAX));
        keep_xfeatures(&mut [0; 4], 0);
    }
}
