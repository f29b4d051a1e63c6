//! Boot and the whole of ring 0: PVH entry, AP trampoline, descriptor and page tables, and the handlers.
//!
//! Ring 0 is emulated on some KVM back ends, at about a microsecond an instruction and without SSE, RDTSCP or INT3. So everything that
//! can be is data made by the assembler, the handlers stay under fifteen instructions, and all work is done in ring 3. INT3 is the one
//! gate from ring 3 to ring 0 (see `cpu`). Not here: anything in Rust that runs.
//!
//! Fixed addresses (checked by `link.ld`): stubs at 0x200000, 16 bytes per vector; per-CPU blocks at 0x400000, a page each:
//! offset 0 interrupt counter, 0x40 kvmclock structure, 0x100 TSS with an I/O bitmap for ports 0-0x7ff, ring-0 stack down from the end.

use core::arch::global_asm;

/// Most vCPUs the image can run: descriptors and per-CPU blocks are made for this many.
pub const MAX_CPUS: usize = 16;
/// First per-CPU block.
pub const PERCPU: u64 = 0x40_0000;
/// Bytes of ring-3 stack per vCPU.
pub const USER_STACK: usize = 64 * 1024;
/// Where the real-mode start of the other vCPUs is copied to: page 8, named by the start-up IPI's vector.
pub const TRAMPOLINE: u64 = 0x8000;
/// Vector of device interrupts (IOAPIC).
pub const VECTOR_DEVICE: u8 = 0x30;
/// Vector by which one vCPU wakes another.
pub const VECTOR_WAKE: u8 = 0x31;
/// Vector of the local timer.
pub const VECTOR_TIMER: u8 = 0x32;
/// Spurious vector of the LAPIC: no end of interrupt.
pub const VECTOR_SPURIOUS: u8 = 0xff;

#[repr(C, align(4096))]
pub struct Stacks([[u8; USER_STACK]; MAX_CPUS]);
#[unsafe(no_mangle)]
static mut USER_STACKS: Stacks = Stacks([[0; USER_STACK]; MAX_CPUS]);
#[unsafe(no_mangle)]
static mut TRAP_STACK: [u8; 8192] = [0; 8192];

/// What the exception stub saves for `trap`: vector, error code, RIP, RSP, CR2.
#[unsafe(no_mangle)]
pub static mut TRAP_FRAME: [u64; 5] = [0; 5];
/// Index of the vCPU that is being started.
#[unsafe(no_mangle)]
pub static mut AP_INDEX: u32 = 0;

unsafe extern "C" {
    /// First byte after the image.
    pub static _image_end: u8;
    /// The trampoline's bytes, to be copied to [`TRAMPOLINE`].
    pub static ap_trampoline: u8;
    /// First byte after the trampoline.
    pub static ap_trampoline_end: u8;
    /// Page directory pointers: entry n maps the n-th GiB.
    pub static mut boot_pdpt: [u64; 512];
}

global_asm!(
    r#"
.section .note.pvh, "a", @note
.balign 4
.long 4, 8, 18              /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
.asciz "Xen"
.quad pvh_entry

/* ---- entry: 32-bit protected mode, paging off, ebx = hvm_start_info ---- */
.section .text.boot, "ax"
.code32
.globl pvh_entry
pvh_entry:
    cli
    mov edi, ebx
    xor esi, esi
    mov al, 0xff            /* an uninitialised 8259 would inject vectors 0-15 */
    out 0x21, al
    out 0xa1, al
enter_long_mode:            /* esi = vCPU index */
    lgdt [gdt_pointer]
    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, 0x620          /* PAE, OSFXSR, OSXMMEXCPT */
    mov cr4, eax
    mov ecx, 0xC0000080
    mov eax, 0x901          /* SCE, LME, NXE */
    xor edx, edx
    wrmsr
    mov eax, 0x80050033     /* PG, AM, WP, NE, ET, MP, PE */
    mov cr0, eax
    .byte 0xea              /* ljmp 0x10:long_mode */
    .long long_mode
    .word 0x10
ap_protected:
    mov eax, 0x18
    mov ds, eax
    mov ss, eax
    xor edi, edi
    mov esi, dword ptr [AP_INDEX]
    jmp enter_long_mode

.code64
long_mode:
    mov eax, 0x18
    mov ss, eax
    lidt [idt_pointer]
    mov eax, esi
    shl eax, 4
    add eax, 0x40
    ltr ax
    mov eax, esi
    shl eax, 12
    lea rsp, [rax + {percpu} + 0x1000]
    mov ecx, esi
    inc ecx
    shl ecx, 16
    lea rax, [rcx + USER_STACKS - 8]
    mov ecx, 0x2b
    mov ds, ecx
    mov es, ecx
    push 0x2b
    push rax
    push 0x202
    push 0x33
    push offset rust_entry
    iretq

/* ---- real-mode start of the other vCPUs; copied to page 8 ---- */
.section .rodata.trampoline, "a"
.code16
.globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16        /* lgdt [0x8000 + offset], 32-bit base */
    .word 0x8000 + (ap_gdt_pointer - ap_trampoline)
    mov eax, 0x11
    mov cr0, eax
    .byte 0x66, 0xea                    /* ljmp 0x08:ap_protected */
    .long ap_protected
    .word 0x08
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:
.code64

/* ---- stubs: 16 bytes per vector ---- */
.section .stubs, "ax"
.balign 4096
stubs:
.set vector, 0
.rept 256
    .balign 16
    .if vector == 3
        jmp gate
    .elseif vector >= 32
        .if vector == 255
            iretq
        .else
            jmp interrupt
        .endif
    .else
        .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
        .else
            push 0
        .endif
        push vector
        jmp exception
    .endif
    .set vector, vector + 1
.endr
.balign 16

interrupt:                  /* count, end of interrupt, return */
    push rax
    mov rax, rsp
    and rax, -4096
    inc qword ptr [rax]
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq

gate:                       /* eax = function; see cpu.rs */
    test eax, eax
    jz 2f
    cmp eax, 1
    je 3f
    cmp eax, 2
    je 4f
    cmp eax, 3
    je 5f
    lidt [no_idt]           /* stop: triple fault */
    ud2
2:  mov rcx, rsp            /* halt unless the interrupt counter differs from rdx */
    and rcx, -4096
    cmp qword ptr [rcx], rdx
    jne 6f
    sti
    hlt
6:  iretq
3:  mov eax, esi            /* MSR rcx = rdx:rsi */
    wrmsr
    iretq
4:  rdmsr
    iretq
5:  mov eax, esi            /* CPUID leaf esi */
    cpuid
    iretq

exception:                  /* save what is needed and go on in ring 3, in trap.rs */
    pop qword ptr [TRAP_FRAME]
    pop qword ptr [TRAP_FRAME + 8]
    mov rax, qword ptr [rsp]
    mov qword ptr [TRAP_FRAME + 16], rax
    mov rax, qword ptr [rsp + 24]
    mov qword ptr [TRAP_FRAME + 24], rax
    mov rax, cr2
    mov qword ptr [TRAP_FRAME + 32], rax
    push 0x2b
    mov eax, offset TRAP_STACK + 8192 - 8
    push rax
    push 0x202
    push 0x33
    push offset trap_entry
    iretq

/* ---- per-CPU blocks ---- */
.section .percpu, "aw"
.balign 4096
.set cpu, 0
.rept {cpus}
    .fill 0x100, 1, 0
    .long 0                                       /* TSS */
    .quad {percpu} + (cpu + 1) * 4096             /* rsp0 */
    .fill 0x66 - 12, 1, 0
    .word 0x68                                    /* I/O bitmap: ports 0-0x7ff allowed */
    .fill 256, 1, 0
    .byte 0xff
    .balign 4096
    .set cpu, cpu + 1
.endr

/* ---- descriptor and page tables ---- */
.section .tables, "aw"
.balign 4096
boot_pml4:
    .quad boot_pdpt + 0x67
    .fill 511, 8, 0
.globl boot_pdpt
boot_pdpt:
    .quad boot_pd + 0x67, boot_pd + 0x1067, boot_pd + 0x2067, boot_pd + 0x3067
    .fill 508, 8, 0
boot_pd:                    /* 4 GiB in 2 MiB pages: present, writable, user, accessed, dirty */
.set page, 0
.rept 2048
    .quad (page << 21) + 0xe7
    .set page, page + 1
.endr
idt:
.set vector, 0
.rept 256
    .word vector * 16
    .word 0x10
    .byte 0
    .if vector == 3
        .byte 0xee
    .else
        .byte 0x8e
    .endif
    .word 0x0020
    .long 0, 0
    .set vector, vector + 1
.endr
.balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        /* 0x08 kernel code, 32-bit */
    .quad 0x00af9b000000ffff        /* 0x10 kernel code */
    .quad 0x00cf93000000ffff        /* 0x18 kernel data */
    .quad 0x00cffb000000ffff        /* 0x20 user code, 32-bit */
    .quad 0x00cff3000000ffff        /* 0x28 user data */
    .quad 0x00affb000000ffff        /* 0x30 user code */
    .quad 0
.set cpu, 0
.rept {cpus}                        /* 0x40: one TSS per vCPU */
    .word 0x168
    .word (cpu * 4096 + 0x100) & 0xffff
    .byte ({percpu} + cpu * 4096) >> 16
    .byte 0x89, 0, ({percpu} >> 24)
    .long 0, 0
    .set cpu, cpu + 1
.endr
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 4095
    .quad idt
no_idt:
    .word 0
    .quad 0
"#,
    percpu = const PERCPU,
    cpus = const MAX_CPUS,
);
