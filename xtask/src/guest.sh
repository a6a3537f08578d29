#!/bin/sh
# Runs inside the VM, as root: works through a list of jobs and leaves what
# they said, and how they ended, in files. Called with the directory that
# holds the list; it is the only one the guest can write to that the host
# sees.
#
# jobs: lines of NAME SECONDS; the command is in NAME.sh

dir=$1
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

if [ "$2" != inside ]; then
	ip link set lo up
	# All at once: what is loaded on demand takes a modprobe each, a second
	# under emulation. A name that a kernel doesn't know is no error here;
	# tests name what they miss.
	modprobe -a nf_conntrack nf_conntrack_netlink nfnetlink_queue \
		nfnetlink_cthelper nf_conntrack_ftp nf_nat_ftp nf_tables nft_ct \
		nft_chain_nat nft_nat nft_masq nft_redir nft_queue nft_reject \
		nft_reject_inet nft_log nft_limit nft_fib_inet nf_nat veth bridge \
		8021q macvlan dummy
	# virtme-ng shares the host's files without caching: every program is
	# read anew each time it is started. Nothing changes them meanwhile, so
	# the jobs run in a second, cached view of the same files (1.7 times
	# faster for programs as small as nft).
	root=/run/lab-root
	options=ro,version=9p2000.L,trans=virtio,cache=loose,msize=512000
	mkdir -p $root
	if mount -t 9p -o $options lab-root $root; then
		for shared in proc sys dev dev/pts run etc tmp var; do
			mount --bind /$shared $root/$shared
		done
		mount --bind "$dir" "$root$dir"
		exec chroot $root sh "$dir/guest.sh" "$dir" inside
	fi
	echo "lab: no cached view of the host's files; going on without"
fi

# /run is a tmpfs. /tmp may hold the workspace, so it stays as it is.
TMPDIR=/run/lab
HOME=/run/lab/home
LAB_VM=$(uname -r)
LAB_SKIPS=$dir/skips
LAB_RESULTS=$dir/results
export TMPDIR HOME LAB_VM LAB_SKIPS LAB_RESULTS
mkdir -p $HOME /run/netns
. "$dir/environment"

while read -r name limit; do
	# Done before the reboot that a job has asked for.
	[ -e "$dir/$name.rc" ] && continue
	echo "lab: $name"
	timeout -k 10 "$limit" sh "$dir/$name.sh" >"$dir/$name.out" 2>&1 </dev/null
	echo $? >"$dir/$name.rc.part"
	mv "$dir/$name.rc.part" "$dir/$name.rc"
	if [ -e "$dir/reboot" ]; then
		# Whoever started the emulator starts it again.
		mv "$dir/reboot" "$dir/again"
		systemctl reboot
		exec sleep infinity
	fi
done <"$dir/jobs"

dmesg >"$dir/dmesg"
echo "lab: finished"
touch "$dir/finished"
