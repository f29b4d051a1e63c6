#!/bin/busybox sh
# First program of a lab host: the real machine's root by 9p, read-only, under an overlay in memory; then the agent.
B=/bin/busybox
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
while read m; do $B insmod /lib/$m || echo "lab: cannot load $m"; done < /modules
P=trans=virtio,version=9p2000.L,msize=512000
$B mount -t 9p -o $P,ro,cache=loose root /lower || { echo "lab: no root share"; $B poweroff -f; }
$B mount -t tmpfs t /rw; $B mkdir /rw/u /rw/w
$B mount -t overlay -o lowerdir=/lower,upperdir=/rw/u,workdir=/rw/w o /mnt
$B mkdir -p /mnt/shared /mnt/lib/modules /mnt/run /mnt/data /mnt/arbiter
$B mount -t 9p -o $P,ro,cache=loose kmod /mnt/lib/modules || echo "lab: no modules share"
$B mount -t 9p -o $P,rw,cache=none shared /mnt/shared
$B mount -t virtiofs arbiter /mnt/arbiter || echo "lab: no arbiter share"
$B mount -t tmpfs t /mnt/run; $B mkdir -p /dev/pts /dev/shm /mnt/run/lock; $B mount -t devpts p /dev/pts; $B mount -t tmpfs t /dev/shm; $B mount -t tmpfs t /mnt/tmp
for w in $($B cat /proc/cmdline); do case $w in lab.*=*) k=${w%%=*}; export LAB_${k#lab.}="${w#*=}";; esac; done
$B hostname h$LAB_id
for i in all default; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done 2>/dev/null
$B ifconfig lo up
$B ifconfig eth0 10.79.0.$LAB_id netmask 255.255.255.0 up
$B ifconfig eth1 10.78.0.$LAB_id netmask 255.255.255.0 mtu $LAB_mtu up
$B ifconfig eth2 0.0.0.0 up
$B brctl addbr br0; $B brctl addif br0 eth2; $B ifconfig br0 up
[ -e /dev/vdb ] && $B mount -t ext4 /dev/vdb /mnt/data
for d in proc sys dev; do $B mount --move /$d /mnt/$d; done
$B cp /agent /mnt/run/lab-agent
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C
exec $B switch_root -c /dev/console /mnt /run/lab-agent host
