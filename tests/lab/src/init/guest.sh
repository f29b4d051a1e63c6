#!/bin/busybox sh
# First program of the stock guest: the kernel's own modules, the network, the root disk; then the agent.
# Kernel command line: lab.ip=ADDRESS/PREFIX, lab.root=DEVICE (none: stay in the initramfs), lab.services=..., lab.stamp=MIB.
B=/bin/busybox
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
while read m; do $B insmod /lib/$m || echo "lab: cannot load $m"; done < /modules
for w in $($B cat /proc/cmdline); do case $w in lab.*=*) k=${w%%=*}; export LAB_${k#lab.}="${w#*=}";; esac; done
$B hostname labguest
for i in all default; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done 2>/dev/null
$B ip link set lo up
n=0; while [ ! -e /sys/class/net/eth0 ] && [ $n -lt 50 ]; do $B usleep 20000; n=$((n+1)); done
if [ -e /sys/class/net/eth0 ]; then $B ip link set eth0 up; $B ip addr add ${LAB_ip:-10.77.0.10/24} dev eth0; else echo "lab: no network card"; fi
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C
if [ -n "$LAB_root" ]; then
  n=0; while [ ! -e $LAB_root ] && [ $n -lt 50 ]; do $B usleep 20000; n=$((n+1)); done
  $B mount -t ext4 -o rw $LAB_root /mnt || { echo "lab: cannot mount $LAB_root"; $B poweroff -f; }
  $B mount -t tmpfs t /mnt/run; $B mount -t tmpfs t /mnt/tmp
  for d in proc sys dev; do $B mount --move /$d /mnt/$d; done
  $B cp /agent /mnt/run/lab-agent
  exec $B switch_root -c /dev/console /mnt /run/lab-agent guest
fi
$B --install -s /bin
exec /agent guest
