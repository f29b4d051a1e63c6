//! memcpy and its family: the toolchain's target takes them from libc, which is not here.
//!
//! In assembly, because a loop in Rust would be recognised as memcpy and call itself; 16 bytes at a time, because `rep movsb` is very
//! slow on emulated processors and the copies here are mostly short.

use core::arch::global_asm;

global_asm!(
    r#"
.section .text.memory, "ax"
.globl memcpy, memmove, memset, memcmp, bcmp
memcpy:
memmove:
    mov rax, rdi
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jb 50f                  /* destination inside the source: copy from the end */
70: cmp rdx, 64
    jb 20f
    movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + 32]
    movups xmm3, [rsi + 48]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + 32], xmm2
    movups [rdi + 48], xmm3
    add rsi, 64
    add rdi, 64
    sub rdx, 64
    jmp 70b
20: cmp rdx, 8
    jb 30f
    mov rcx, [rsi]
    mov [rdi], rcx
    add rsi, 8
    add rdi, 8
    sub rdx, 8
    jmp 20b
30: test rdx, rdx
    jz 40f
    mov cl, [rsi]
    mov [rdi], cl
    inc rsi
    inc rdi
    dec rdx
    jmp 30b
40: ret
50: cmp rdx, 8
    jb 60f
    mov rcx, [rsi + rdx - 8]
    mov [rdi + rdx - 8], rcx
    sub rdx, 8
    jmp 50b
60: test rdx, rdx
    jz 40b
    mov cl, [rsi + rdx - 1]
    mov [rdi + rdx - 1], cl
    dec rdx
    jmp 60b

memset:
    mov rax, rdi
    movzx ecx, sil
    mov r8, 0x0101010101010101
    imul rcx, r8
70: cmp rdx, 8
    jb 20f
    mov [rdi], rcx
    add rdi, 8
    sub rdx, 8
    jmp 70b
20: test rdx, rdx
    jz 30f
    mov [rdi], cl
    inc rdi
    dec rdx
    jmp 20b
30: ret

bcmp:
memcmp:
70: cmp rdx, 8
    jb 20f
    mov rax, [rdi]
    mov rcx, [rsi]
    cmp rax, rcx
    jne 15f
    add rdi, 8
    add rsi, 8
    sub rdx, 8
    jmp 70b
15: bswap rax
    bswap rcx
    cmp rax, rcx
    sbb eax, eax
    or eax, 1
    ret
20: test rdx, rdx
    jz 30f
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    sub eax, ecx
    jne 40f
    inc rdi
    inc rsi
    dec rdx
    jmp 20b
30: xor eax, eax
40: ret
"#
);
