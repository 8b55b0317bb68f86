//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func errno(e syscall.Errno) string {
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return "errno " + strconv.Itoa(int(e))
}

// privileges reports what the kernel says of this process (proc(5)).
func privileges(r *Report, _ []string) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		r.fact("error", err.Error())
		return
	}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		switch k {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups":
			r.fact(k, strings.TrimSpace(v))
		}
	}
	if b, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		r.fact("uid_map", strings.Join(strings.Fields(string(b)), " "))
	}
	if b, err := os.ReadFile("/proc/self/attr/current"); err == nil {
		r.fact("label", strings.TrimSpace(string(b)))
	}
	// An ordinary user must not become root by a setuid program.
	for _, p := range []string{"/usr/bin/su", "/bin/su", "/usr/bin/mount", "/usr/bin/passwd"} {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil && st.Mode&unix.S_ISUID != 0 {
			r.fact("setuid program", p)
		}
	}
}

// descriptors looks for inherited files that lead out of the root.
func descriptors(r *Report, _ []string) {
	for _, pid := range []string{"self", "1", strconv.Itoa(os.Getppid())} {
		dir := "/proc/" + pid + "/fd"
		f, err := os.Open(dir)
		if err != nil {
			r.add(dir, false, err, "")
			continue
		}
		names, err := f.Readdirnames(-1)
		own := strconv.Itoa(int(f.Fd()))
		f.Close()
		if err != nil {
			r.add(dir, false, err, "")
			continue
		}
		for _, n := range names {
			if pid == "self" && n == own {
				continue
			}
			link := dir + "/" + n
			target, err := os.Readlink(link)
			if err != nil {
				r.add(link, false, err, "")
				continue
			}
			worked, why := leadsOut(link, target)
			r.add(link, worked, nil, target+why)
		}
	}
	// Directories named by descriptor, as in the leak of runc's working
	// directory (CVE-2024-21626).
	for n := 3; n < 64; n++ {
		if fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d/..", n), unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			r.add(fmt.Sprintf("/proc/self/fd/%d/..", n), true, nil, "an inherited directory")
			unix.Close(fd)
		}
	}
	if wd, err := os.Getwd(); err != nil || strings.HasPrefix(wd, "(unreachable)") {
		r.add("working directory", true, err, wd)
	}
}

// leadsOut tells whether a descriptor's file is other than what its name
// leads to from this root.
func leadsOut(link, target string) (bool, string) {
	if !strings.HasPrefix(target, "/") {
		return false, ""
	}
	if strings.HasPrefix(target, "/memfd:") || strings.HasPrefix(target, "/dev/null") || strings.HasPrefix(target, "/dev/pts/") || target == "/dev/tty" || target == "/dev/zero" || target == "/dev/urandom" {
		return false, ""
	}
	var a, b unix.Stat_t
	if err := unix.Stat(link, &a); err != nil {
		return false, " (cannot be followed: " + err.Error() + ")"
	}
	if strings.HasSuffix(target, " (deleted)") {
		return a.Mode&unix.S_IFMT == unix.S_IFDIR, " deleted"
	}
	if err := unix.Stat(target, &b); err != nil {
		return true, " does not exist under this root: " + err.Error()
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		return true, " is another file under this root"
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		// Climb out of it.
		fd, err := unix.Open(link, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, ""
		}
		defer unix.Close(fd)
		var top, root unix.Stat_t
		if unix.Fstatat(fd, strings.Repeat("../", 64), &top, 0) == nil && unix.Stat("/", &root) == nil && (top.Dev != root.Dev || top.Ino != root.Ino) {
			return true, " leads to another root"
		}
	}
	return false, ""
}

// reached tells whether a system call got past the filter: a filter answers
// EPERM, EACCES or ENOSYS whatever the arguments, and a kernel without the
// family EAFNOSUPPORT or the like.
func reached(e syscall.Errno) bool {
	switch e {
	case unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT, unix.EOPNOTSUPP:
		return false
	}
	return true
}

func syscalls(r *Report, _ []string) {
	call := func(name string, trap, a, b, c, d, e uintptr) {
		got, _, err := unix.Syscall6(trap, a, b, c, d, e, 0)
		if err == 0 {
			r.add(name, true, nil, fmt.Sprintf("returned %d", got))
			if strings.HasPrefix(name, "socket ") || name == "io_uring_setup" || name == "userfaultfd" || name == "perf_event_open" || name == "bpf" || name == "fsopen" || name == "open_tree" {
				unix.Close(int(got))
			}
			return
		}
		r.add(name, reached(err), err, "")
	}
	p := func(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
	buf := make([]byte, 256)
	cstr := func(s string) []byte { return append([]byte(s), 0) }
	minusOne := ^uintptr(0)
	here := ^uintptr(99) // AT_FDCWD, -100

	call("io_uring_setup", unix.SYS_IO_URING_SETUP, 4, p(make([]byte, 256)), 0, 0, 0)
	call("io_uring_enter", unix.SYS_IO_URING_ENTER, minusOne, 0, 0, 0, 0)
	call("io_uring_register", unix.SYS_IO_URING_REGISTER, minusOne, 0, 0, 0, 0)
	mapAttr := make([]byte, 128)
	mapAttr[0], mapAttr[4], mapAttr[8], mapAttr[12] = 2, 4, 4, 1 // an array of one
	call("bpf", unix.SYS_BPF, 0, p(mapAttr), 128, 0, 0)
	call("userfaultfd", unix.SYS_USERFAULTFD, 1, 0, 0, 0, 0) // UFFD_USER_MODE_ONLY
	call("keyctl", unix.SYS_KEYCTL, 0, ^uintptr(2), 1, 0, 0) // the session keyring's id
	desc, typ, val := cstr("daytona-attack"), cstr("user"), cstr("v")
	call("add_key", unix.SYS_ADD_KEY, p(typ), p(desc), p(val), 1, ^uintptr(1))
	call("request_key", unix.SYS_REQUEST_KEY, p(typ), p(desc), 0, 0, 0)
	attr := make([]byte, 128)
	attr[0], attr[4] = 1, 112 // PERF_TYPE_SOFTWARE, size
	attr[40] = 1 << 5         // exclude_kernel
	call("perf_event_open", unix.SYS_PERF_EVENT_OPEN, p(attr), 0, minusOne, minusOne, 0)
	call("kexec_load", unix.SYS_KEXEC_LOAD, 0, 0, 0, 1, 0)
	handle := make([]byte, 64)
	handle[0], handle[4] = 8, 1
	call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, here, p(handle), 0, 0, 0)
	call("init_module", unix.SYS_INIT_MODULE, p(buf), 16, p(cstr("")), 0, 0)
	call("finit_module", unix.SYS_FINIT_MODULE, minusOne, p(cstr("")), 0, 0, 0)
	call("delete_module", unix.SYS_DELETE_MODULE, p(cstr("daytona_none")), 0, 0, 0, 0)
	call("pivot_root", unix.SYS_PIVOT_ROOT, p(cstr("/none")), p(cstr("/none")), 0, 0, 0)
	call("swapon", unix.SYS_SWAPON, p(cstr("/none")), 0, 0, 0, 0)
	call("swapoff", unix.SYS_SWAPOFF, p(cstr("/none")), 0, 0, 0, 0)
	call("reboot", unix.SYS_REBOOT, 0, 0, 0, 0, 0) // without the magic numbers
	call("acct", unix.SYS_ACCT, p(cstr("/none")), 0, 0, 0, 0)
	call("settimeofday", unix.SYS_SETTIMEOFDAY, 0, 0, 0, 0, 0)
	call("syslog", unix.SYS_SYSLOG, 3, p(buf), 16, 0, 0)
	call("mount", unix.SYS_MOUNT, p(cstr("none")), p(cstr("/")), p(cstr("tmpfs")), unix.MS_REMOUNT|unix.MS_BIND, 0)
	call("umount2", unix.SYS_UMOUNT2, p(cstr("/none")), 0, 0, 0, 0)
	call("fsopen", unix.SYS_FSOPEN, p(cstr("tmpfs")), 0, 0, 0, 0)
	call("open_tree", unix.SYS_OPEN_TREE, here, p(cstr("/")), 1, 0, 0)
	call("move_mount", unix.SYS_MOVE_MOUNT, here, p(cstr("/none")), here, p(cstr("/none")), 0)
	call("mount_setattr", unix.SYS_MOUNT_SETATTR, here, p(cstr("/")), 0, p(make([]byte, 32)), 32)
	call("quotactl", unix.SYS_QUOTACTL, 0x800004<<8, 0, 0, 0, 0) // Q_SYNC
	call("kcmp", unix.SYS_KCMP, 1, uintptr(os.Getpid()), 0, 0, 0)
	if fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		call("setns", unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWUTS, 0, 0, 0)
		unix.Close(fd)
	}
	for _, s := range []struct {
		name               string
		family, typ, proto int
	}{
		{"AF_ALG", unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, {"AF_VSOCK", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{"AF_PACKET", unix.AF_PACKET, unix.SOCK_RAW, 0x0300}, {"AF_PACKET dgram", unix.AF_PACKET, unix.SOCK_DGRAM, 0x0300},
		{"AF_KEY", unix.AF_KEY, unix.SOCK_RAW, 2}, {"AF_RDS", unix.AF_RDS, unix.SOCK_SEQPACKET, 0}, {"AF_TIPC", unix.AF_TIPC, unix.SOCK_SEQPACKET, 0},
		{"AF_BLUETOOTH", unix.AF_BLUETOOTH, unix.SOCK_RAW, 1}, {"AF_CAN", unix.AF_CAN, unix.SOCK_RAW, 1}, {"AF_XDP", unix.AF_XDP, unix.SOCK_RAW, 0},
		{"AF_INET raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP}, {"AF_INET6 raw", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_TCP},
	} {
		call("socket "+s.name, unix.SYS_SOCKET, uintptr(s.family), uintptr(s.typ), uintptr(s.proto), 0, 0)
	}
}

// settings opens for writing what configures the kernel.
func settings(r *Report, _ []string) {
	paths := []string{
		"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug",
		"/proc/sys/vm/panic_on_oom", "/proc/sys/vm/overcommit_memory", "/proc/sys/fs/suid_dumpable", "/proc/sys/fs/protected_symlinks",
		"/proc/sys/fs/binfmt_misc/register", "/proc/sys/kernel/randomize_va_space", "/proc/sys/kernel/unprivileged_bpf_disabled",
		"/proc/sys/kernel/yama/ptrace_scope", "/proc/sys/kernel/pid_max", "/proc/mtrr", "/proc/irq/default_smp_affinity",
		"/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/sys/module/kernel/parameters/panic", "/sys/kernel/security/apparmor/.load",
		"/proc/fs/nfsd/threads", "/proc/bus/pci/devices", "/proc/self/attr/exec",
	}
	for _, p := range paths {
		if p == "/proc/self/attr/exec" {
			continue // one's own label may be tightened
		}
		fd, err := unix.Open(p, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		r.tried(p, err)
	}
	// Anything else below /sys and /proc/sys that can be opened for writing.
	n := 0
	for _, root := range []string{"/proc/sys", "/sys"} {
		_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if n++; n > 60_000 {
				return fs.SkipAll
			}
			if err != nil || !d.Type().IsRegular() || slices.Contains(paths, p) || strings.HasPrefix(p, "/sys/fs/cgroup/") {
				return nil
			}
			// Settings of the sandbox's own network namespace are its own.
			if strings.HasPrefix(p, "/proc/sys/net/") || strings.HasPrefix(p, "/proc/sys/user/") {
				return nil
			}
			if fd, err := unix.Open(p, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
				unix.Close(fd)
				r.add(p, true, nil, "")
			}
			return nil
		})
	}
}

type mountInfo struct{ point, fsType, options, root string }

func mountTable() []mountInfo {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []mountInfo
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		i := slices.Index(f, "-")
		if len(f) < 7 || i < 0 || i+1 >= len(f) {
			continue
		}
		out = append(out, mountInfo{point: unescape.Replace(f[4]), options: f[5], fsType: f[i+1], root: unescape.Replace(f[3])})
	}
	return out
}

func (m mountInfo) readOnly() bool { return slices.Contains(strings.Split(m.options, ","), "ro") }

// mounts tries to make read-only mounts writable and to mount anew.
func mounts(r *Report, _ []string) {
	for _, m := range mountTable() {
		r.fact("mount "+m.point, m.fsType+" "+m.options+" "+m.root)
		if !m.readOnly() {
			continue
		}
		r.tried("remount,rw "+m.point, unix.Mount("", m.point, "", unix.MS_REMOUNT, ""))
		r.tried("remount,bind,rw "+m.point, unix.Mount("", m.point, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
		attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
		r.tried("mount_setattr "+m.point, unix.MountSetattr(unix.AT_FDCWD, m.point, 0, &attr))
		if m.point != "/" {
			r.tried("umount "+m.point, unix.Unmount(m.point, unix.MNT_DETACH))
		}
		probe := filepath.Join(m.point, ".daytona-attack")
		fd, err := unix.Open(probe, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err == nil {
			unix.Close(fd)
			unix.Unlink(probe)
		}
		r.tried("write to read-only "+m.point, err)
	}
	dir, err := os.MkdirTemp("", "mnt")
	if err != nil {
		return
	}
	for _, t := range []string{"tmpfs", "proc", "sysfs", "cgroup2", "devpts", "overlay", "ramfs", "debugfs", "tracefs", "bpf", "securityfs"} {
		opts := ""
		if t == "overlay" {
			opts = "lowerdir=/:/"
		}
		err := unix.Mount(t, dir, t, 0, opts)
		if err == nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
		r.tried("mount "+t, err)
	}
	r.tried("bind mount", unix.Mount("/", dir, "", unix.MS_BIND|unix.MS_REC, ""))
}

// userNamespace makes a user namespace and repeats the attacks with its full
// set of capabilities.
func userNamespace(r *Report, args []string) {
	if len(args) > 0 && args[0] == "inside" {
		mounts(r, nil)
		syscalls(r, nil)
		cgroup(r, nil)
		if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER); err == nil {
			unix.Close(fd)
			r.fact("netlink netfilter", "socket")
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		r.fact("error", err.Error())
		return
	}
	cmd := exec.Command(exe, "userns", "inside")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	if err != nil {
		r.fact("user namespace", "denied: "+err.Error())
		return
	}
	r.fact("user namespace", "allowed")
	var inner Report
	if err := json.Unmarshal(out, &inner); err != nil {
		r.fact("error", err.Error())
		return
	}
	r.Attempts = inner.Attempts
	for k, v := range inner.Facts {
		r.fact(k, v)
	}
}

func devices(r *Report, _ []string) {
	type dev struct {
		name         string
		mode         uint32
		major, minor uint32
	}
	devs := []dev{
		{"mem", unix.S_IFCHR, 1, 1}, {"kmem", unix.S_IFCHR, 1, 2}, {"port", unix.S_IFCHR, 1, 4}, {"kmsg", unix.S_IFCHR, 1, 11},
		{"kvm", unix.S_IFCHR, 10, 232}, {"fuse", unix.S_IFCHR, 10, 229}, {"tun", unix.S_IFCHR, 10, 200}, {"vhost-net", unix.S_IFCHR, 10, 238},
		{"loop-control", unix.S_IFCHR, 10, 237}, {"sda", unix.S_IFBLK, 8, 0}, {"vda", unix.S_IFBLK, 253, 0}, {"nvme0n1", unix.S_IFBLK, 259, 0}, {"loop0", unix.S_IFBLK, 7, 0},
	}
	if b, err := os.ReadFile("/proc/partitions"); err == nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) == 4 {
				major, e1 := strconv.Atoi(f[0])
				minor, e2 := strconv.Atoi(f[1])
				if e1 == nil && e2 == nil {
					devs = append(devs, dev{f[3], unix.S_IFBLK, uint32(major), uint32(minor)})
				}
			}
		}
	}
	for _, dir := range []string{".", "/tmp", "/dev/shm", "/dev", "/var/tmp"} {
		for _, d := range devs {
			p := filepath.Join(dir, ".attack-"+d.name)
			if err := unix.Mknod(p, d.mode|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
				r.add("mknod "+p, false, err, "")
				continue
			}
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			// ENXIO and the like come from the driver: the node itself was let through.
			worked := err == nil
			if e, ok := errors.AsType[syscall.Errno](err); ok && e != unix.EPERM && e != unix.EACCES {
				worked = e != unix.ENXIO && e != unix.ENODEV && e != unix.ENOENT
			}
			r.add("mknod and open "+p, worked, err, "")
			unix.Unlink(p)
		}
	}
	harmless := map[string]bool{"null": true, "zero": true, "full": true, "random": true, "urandom": true, "tty": true, "ptmx": true, "console": true}
	_ = filepath.WalkDir("/dev", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeDevice == 0 || strings.HasPrefix(p, "/dev/pts/") || (filepath.Dir(p) == "/dev" && harmless[d.Name()]) {
			return nil
		}
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		r.tried("open "+p, err)
		return nil
	})
}

// agent attacks the processes that started this one: PID 1 and the parent.
func agent(r *Report, args []string) {
	pids := []int{1}
	if pp := os.Getppid(); pp > 1 {
		pids = append(pids, pp)
	}
	for _, pid := range pids {
		name := strconv.Itoa(pid)
		for _, f := range []string{"cmdline", "environ", "auxv", "maps"} {
			b, err := os.ReadFile("/proc/" + name + "/" + f)
			if err != nil {
				b = []byte("unreadable: " + err.Error())
			}
			r.fact(f+" of "+name, string(bytes.ReplaceAll(b[:min(len(b), 4000)], []byte{0}, []byte{' '})))
		}
		r.tried("ptrace attach "+name, unix.PtraceAttach(pid))
		_ = unix.PtraceDetach(pid)
		r.tried("ptrace seize "+name, unix.PtraceSeize(pid))
		for _, mode := range []int{unix.O_RDONLY, unix.O_RDWR} {
			fd, err := unix.Open("/proc/"+name+"/mem", mode|unix.O_CLOEXEC, 0)
			if err == nil {
				// The file may open and yet refuse every access.
				_, err = unix.Pread(fd, make([]byte, 1), firstMapping(name))
				unix.Close(fd)
			}
			r.tried(fmt.Sprintf("/proc/%s/mem mode %d", name, mode), err)
		}
		for _, f := range []string{"oom_score_adj", "comm", "coredump_filter", "timerslack_ns", "uid_map", "clear_refs"} {
			fd, err := unix.Open("/proc/"+name+"/"+f, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil && f == "uid_map" {
				_, err = unix.Write(fd, []byte("0 0 1"))
			}
			if err == nil && f == "timerslack_ns" {
				err = unix.EPERM // opening it proves nothing: the write is what is checked
			}
			if fd >= 0 {
				unix.Close(fd)
			}
			r.tried("/proc/"+name+"/"+f, err)
		}
		for _, l := range []string{"root", "cwd"} {
			var there, here unix.Stat_t
			if err := unix.Stat("/proc/"+name+"/"+l, &there); err != nil {
				r.add("/proc/"+name+"/"+l, false, err, "")
			} else if unix.Stat("/", &here) == nil && l == "root" {
				r.add("/proc/"+name+"/"+l, there.Dev != here.Dev || there.Ino != here.Ino, nil, "another root")
			}
		}
		lim := unix.Rlimit{Cur: 3, Max: 3}
		r.tried("prlimit "+name, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &lim))
		r.tried("sched_setscheduler "+name, unix.Setpriority(unix.PRIO_PROCESS, pid, 19))
	}
	if len(args) > 0 && args[0] == "kill" {
		for _, pid := range pids {
			for _, s := range []syscall.Signal{unix.SIGSTOP, unix.SIGTERM, unix.SIGSEGV, unix.SIGKILL} {
				err := unix.Kill(pid, s)
				// A signal to the init of a namespace is accepted and then
				// ignored; whether it lives is for the suite to see.
				r.add(fmt.Sprintf("kill -%d %d", s, pid), err == nil && pid != 1, err, "")
			}
		}
		r.add("kill everybody", false, unix.Kill(-1, unix.SIGUSR1), "")
	}
}

func firstMapping(pid string) int64 {
	b, err := os.ReadFile("/proc/" + pid + "/maps")
	if err != nil {
		return 0x400000
	}
	start, _, _ := strings.Cut(string(b), "-")
	n, err := strconv.ParseUint(start, 16, 63)
	if err != nil {
		return 0x400000
	}
	return int64(n)
}

// overwrite goes for the agent's binary in the way of CVE-2019-5736: it holds
// the file by /proc/PID/exe and reopens it for writing.
func overwrite(r *Report, args []string) {
	until := time.Now().Add(time.Duration(number(args, 0, 1)) * time.Second)
	for _, pid := range []string{"1", strconv.Itoa(os.Getppid())} {
		link := "/proc/" + pid + "/exe"
		held, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			r.add("hold "+link, false, err, "")
			continue
		}
		var last error
		for rounds := 0; rounds == 0 || time.Now().Before(until); rounds++ {
			fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", held), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if last = err; err == nil {
				unix.Close(fd)
				break
			}
			// "Text file busy" means that only the running process protects it.
		}
		r.add("reopen "+link+" for writing", last == nil || errors.Is(last, unix.ETXTBSY), last, "")
		r.tried("chmod "+link, unix.Fchmodat(unix.AT_FDCWD, link, 0o777, 0))
		if t, err := os.Readlink(link); err == nil {
			r.fact(link, t)
			r.tried("rename "+t, unix.Rename(t, t+".attack"))
		}
		unix.Close(held)
	}
}

func cgroup(r *Report, _ []string) {
	b, _ := os.ReadFile("/proc/self/cgroup")
	r.fact("/proc/self/cgroup", string(b))
	open := func(p string) error {
		fd, err := unix.Open(p, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	n := 0
	for _, m := range mountTable() {
		if m.fsType != "cgroup" && m.fsType != "cgroup2" {
			continue
		}
		r.fact("cgroup mount "+m.point, m.options+" root "+m.root)
		_ = filepath.WalkDir(m.point, func(p string, d fs.DirEntry, err error) error {
			if n++; n > 20_000 {
				return fs.SkipAll
			}
			if err != nil || d.IsDir() {
				return nil
			}
			switch d.Name() {
			case "release_agent", "notify_on_release", "cgroup.procs", "tasks", "memory.max", "memory.high", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us",
				"devices.allow", "cgroup.subtree_control", "cgroup.freeze", "cgroup.kill", "memory.oom.group", "cpuset.cpus":
				r.tried("open "+p+" for writing", open(p))
			}
			return nil
		})
		dir := filepath.Join(m.point, "daytona-attack")
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			os.Remove(dir)
		}
		r.tried("mkdir "+dir, err)
	}
	dir, err := os.MkdirTemp("", "cg")
	if err != nil {
		return
	}
	for _, x := range []struct{ typ, opt string }{{"cgroup", "rdma"}, {"cgroup", "memory"}, {"cgroup", "none,name=attack"}, {"cgroup2", ""}} {
		err := unix.Mount("cgroup", dir, x.typ, 0, x.opt)
		if err == nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
		r.tried("mount "+x.typ+" "+x.opt, err)
	}
}

// secrets looks for sockets of the host and for what names it.
func secrets(r *Report, _ []string) {
	for _, p := range []string{
		"/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/podman/podman.sock", "/run/systemd/private",
		"/run/dbus/system_bus_socket", "/var/run/secrets/kubernetes.io/serviceaccount/token",
		"/root/.ssh/id_rsa", "/root/.ssh/id_ed25519", "/root/.ssh/authorized_keys", "/root/.aws/credentials", "/root/.config/gcloud/credentials.db", "/root/.docker/config.json", "/root/.netrc", "/root/.bash_history",
		"/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_rsa_key", "/etc/machine-id.host",
	} {
		var st unix.Stat_t
		r.tried("find "+p, unix.Lstat(p, &st))
	}
	for _, p := range []string{
		"/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats", "/proc/scsi/scsi", "/proc/key-users",
		"/sys/class/dmi/id/product_name", "/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/sys_vendor", "/sys/devices/virtual/dmi/id/product_name",
		"/sys/firmware/dmi/tables/DMI", "/sys/firmware/acpi/tables/DSDT", "/sys/kernel/debug/sleep_time", "/sys/kernel/security/lockdown",
	} {
		f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			var n int
			n, err = io.ReadAtLeast(f, make([]byte, 64), 1)
			if n > 0 {
				err = nil
			}
			f.Close()
		}
		r.tried("read "+p, err)
	}
	// A socket whose other end has no process id here is served from outside.
	outside := func(addr unix.Sockaddr) (bool, error) {
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
			fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return false, err
			}
			defer unix.Close(fd)
			if err = unix.Connect(fd, addr); err != nil {
				if errors.Is(err, unix.EPROTOTYPE) {
					continue
				}
				return false, err
			}
			cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
			return typ != unix.SOCK_STREAM || err != nil || cred.Pid == 0, err
		}
		return false, nil
	}
	n := 0
	_ = filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if n++; n > 400_000 {
			return fs.SkipAll
		}
		if err != nil {
			return nil
		}
		if d.IsDir() && (p == "/proc" || p == "/sys" || p == "/usr") {
			return fs.SkipDir
		}
		if d.Type()&fs.ModeSocket != 0 && len(p) < 107 {
			worked, err := outside(&unix.SockaddrUnix{Name: p})
			r.add("connect "+p, worked, err, "")
		}
		return nil
	})
	if f, err := os.Open("/proc/net/unix"); err == nil {
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			fields := strings.Fields(sc.Text())
			if len(fields) == 8 && strings.HasPrefix(fields[7], "@") && len(fields[7]) < 107 {
				worked, err := outside(&unix.SockaddrUnix{Name: fields[7]})
				r.add("connect abstract "+fields[7], worked, err, "")
			}
		}
		f.Close()
	}
	r.fact("environ", strings.Join(os.Environ(), "\n"))
	procs, _ := filepath.Glob("/proc/[0-9]*")
	r.N = int64(len(procs))
	for _, p := range procs {
		if b, err := os.ReadFile(p + "/environ"); err == nil {
			r.fact("environ of "+p, strings.ReplaceAll(string(b), "\x00", "\n"))
		}
		if b, err := os.ReadFile(p + "/cmdline"); err == nil {
			r.fact("cmdline of "+p, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
}
