#!/bin/busybox sh
# The first process of a guest: loads modules, lays the host's files (read-only) and memory over what must be written,
# runs the tests, and says what they said on the second serial line. `SHARES` and `PROGRAMS` are filled in.
/bin/busybox mkdir -p /proc /sys /dev /host /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw
say() { echo "@@aksnet-vm $*"; }
end() { say "$@"; sync; poweroff -f; }
say kernel "$(uname -r)"

for module in virtio_pci 9p 9pnet_virtio; do
	modprobe $module || end trouble "no module $module"
done
# Those that nothing asks for by itself: iptables-legacy looks for tables that are there, the agent for the BTF of what
# is loaded.
for module in ip_tables ip6_tables iptable_filter iptable_nat ip6table_filter ip6table_nat nf_conntrack \
	nf_conntrack_netlink nf_tables; do
	modprobe $module || say trouble "no module $module"
done

share() {
	mkdir -p "/host$2"
	mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose "$1" "/host$2" || end trouble "no share of $2"
}
share root /
for directory in /run /tmp /var; do
	mount -t tmpfs -o mode=1777 tmpfs /host$directory
done
mkdir -p /host/var/lib /host/var/tmp /host/var/log
ln -s ../run /host/var/run
SHARES
mount -t proc proc /host/proc
mount --rbind /sys /host/sys
mount --rbind /dev /host/dev
mount -t tmpfs tmpfs /dev/shm 2>/dev/null
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
echo 1 >/proc/sys/net/core/bpf_jit_enable
hostname guest

run() {
	name=$1
	shift
	say begin "$name"
	began=$(cut -d. -f1 /proc/uptime)
	chroot /host "$@"
	code=$?
	# Whatever it printed last is on a line of its own.
	echo
	say end "$name" $code $(($(cut -d. -f1 /proc/uptime) - began))
}
PROGRAMS
end done
