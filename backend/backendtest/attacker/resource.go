//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pause keeps what an attack has taken for a number of seconds. The line
// before tells the suite that it has it.
func pause(r *Report, args []string, i int) {
	if s := number(args, i, 0); s > 0 {
		fmt.Println("holding", r.N)
		time.Sleep(time.Duration(s) * time.Second)
	}
}

// fork makes a process by the bare system call. The child of a Go program may
// do nothing but make further bare system calls.
//
//go:nosplit
//go:norace
func fork() (uintptr, syscall.Errno) {
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	return pid, e
}

// forkBomb starts as many processes as it can, at most args[0], holds them
// for args[1] seconds, and ends them.
func forkBomb(r *Report, args []string) {
	most := number(args, 0, 4000)
	var pids []int
	var last syscall.Errno
	for int64(len(pids)) < most {
		pid, e := fork()
		if e != 0 {
			last = e
			break
		}
		if pid == 0 {
			for {
				syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
			}
		}
		pids = append(pids, int(pid))
	}
	r.N = int64(len(pids))
	r.add("fork", r.N >= most, last, "")
	pause(r, args, 1)
	for _, p := range pids {
		_ = unix.Kill(p, unix.SIGKILL)
	}
}

// memory touches args[0] MiB.
func memory(r *Report, args []string) {
	most := number(args, 0, 1024)
	for r.N < most {
		b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			r.tried("mmap", err)
			break
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = byte(i >> 12)
		}
		r.N++
	}
	r.add("memory", r.N >= most, nil, fmt.Sprintf("%d MiB", r.N))
	pause(r, args, 1)
}

// fill writes args[0] MiB into each of the directories that follow.
func fill(r *Report, args []string) {
	most := number(args, 0, 1024)
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i * 7)
	}
	for _, dir := range args[1:] {
		p := filepath.Join(dir, ".attack-fill")
		f, err := os.Create(p)
		if err != nil {
			r.add("fill "+dir, false, err, "")
			continue
		}
		var n int64
		for ; n < most; n++ {
			if _, err = f.Write(chunk); err != nil {
				break
			}
		}
		f.Close()
		os.Remove(p)
		r.add("fill "+dir, n >= most, err, fmt.Sprintf("%d MiB", n))
		r.N = max(r.N, n)
	}
}

// inodes makes args[1] empty files in the directory args[0] and leaves them.
func inodes(r *Report, args []string) {
	most := number(args, 1, 100_000)
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		r.tried("mkdir", err)
		return
	}
	var err error
	for r.N < most {
		var fd int
		if fd, err = unix.Open(fmt.Sprintf("%s/%d", args[0], r.N), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err != nil {
			break
		}
		unix.Close(fd)
		r.N++
	}
	r.add("inodes", r.N >= most, err, "")
}

// openFiles has as many processes as args[0] open as many files as they can.
func openFiles(r *Report, args []string) {
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})
	var err error
	for r.N < 1<<20 {
		if _, err = unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			break
		}
		r.N++
	}
	r.add("open", r.N >= 1<<20, err, "")
	pause(r, args, 0)
}

// inotify takes as many instances and watches as it can, at most args[0].
func inotify(r *Report, args []string) {
	most := number(args, 0, 1<<20)
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})
	var err error
	for r.N < most {
		var fd int
		if fd, err = unix.InotifyInit1(unix.IN_CLOEXEC); err != nil {
			break
		}
		if _, err = unix.InotifyAddWatch(fd, "/", unix.IN_CREATE); err != nil {
			break
		}
		r.N++
	}
	r.add("inotify", r.N >= most, err, "")
	pause(r, args, 1)
}

// keyring adds keys until it is refused.
func keyring(r *Report, args []string) {
	most := number(args, 0, 10_000)
	var err error
	for r.N < most {
		if _, err = unix.AddKey("user", "attack-"+strconv.FormatInt(r.N, 10), []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING); err != nil {
			break
		}
		r.N++
	}
	r.add("add_key", r.N > 0, err, "")
	pause(r, args, 1)
}

// zombies makes args[0] orphans that end at once.
func zombies(r *Report, args []string) {
	most := number(args, 0, 10_000)
	for r.N < most {
		pid, e := fork()
		if e != 0 {
			r.add("fork", false, e, "")
			time.Sleep(time.Millisecond)
			if len(r.Attempts) > 20_000 {
				break
			}
			continue
		}
		if pid == 0 {
			// The grandchild is an orphan as soon as its parent has gone.
			fork()
			syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		_, _ = unix.Wait4(int(pid), nil, 0, nil)
		r.N++
	}
	r.Attempts = r.Attempts[:min(len(r.Attempts), 3)]
	// A reaper that lags a little is none that fails: look for five seconds.
	var left int
	for range 50 {
		if left = countZombies(); left == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.add("zombies", left > 0, nil, strconv.Itoa(left))
}

func countZombies() int {
	n := 0
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		// The state follows the name, which may hold anything (proc(5)).
		if i := strings.LastIndexByte(string(b), ')'); i > 0 && i+2 < len(b) && b[i+2] == 'Z' {
			n++
		}
	}
	return n
}

// flood writes args[0] MiB to standard output, without a report.
func flood(_ *Report, args []string) {
	line := []byte(strings.Repeat("flood ", 10922) + "\n...") // 64 KiB
	for range number(args, 0, 100) * 16 {
		if _, err := os.Stdout.Write(line); err != nil {
			os.Exit(1)
		}
	}
	os.Exit(0)
}

// spin keeps args[0] threads busy for args[1] seconds.
func spin(_ *Report, args []string) {
	until := time.Now().Add(time.Duration(number(args, 1, 3)) * time.Second)
	var wg sync.WaitGroup
	for range number(args, 0, 8) {
		wg.Go(func() {
			for n := 0; ; n++ {
				if n%1_000_000 == 0 && time.Now().After(until) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// family starts sleepers that get away by every means, prints "started" and
// sleeps. args[0] marks them.
func family(r *Report, args []string) {
	exe, err := os.Executable()
	if err != nil {
		os.Exit(3)
	}
	start := func(attr *syscall.SysProcAttr, args ...string) {
		cmd := exec.Command(exe, args...)
		cmd.SysProcAttr = attr
		if err := cmd.Start(); err != nil {
			fmt.Println("error", err)
		}
	}
	mark := args[0]
	if len(args) > 1 {
		// The middle of a double fork.
		start(&syscall.SysProcAttr{Setsid: true}, "sleep", mark+"-orphan")
		os.Exit(0)
	}
	start(nil, "sleep", mark+"-child")
	start(&syscall.SysProcAttr{Setpgid: true}, "sleep", mark+"-group")
	start(&syscall.SysProcAttr{Setsid: true}, "sleep", mark+"-session")
	for range 10 {
		start(&syscall.SysProcAttr{Setsid: true}, "family", mark, "middle")
	}
	// Processes that fork while they are being hunted.
	fmt.Println("started")
	if pid, e := fork(); e == 0 && pid == 0 {
		for {
			if p, e := fork(); e != 0 || p != 0 {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			syscall.RawSyscall6(unix.SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)
		}
	}
	sleep(r, nil)
}

// sleep ignores what asks it to end.
func sleep(_ *Report, _ []string) {
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		ignore(s)
	}
	time.Sleep(time.Hour)
}

func touch(r *Report, args []string) {
	for _, p := range args {
		f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			f.Close()
		}
		r.tried("touch "+p, err)
	}
}

// linkRace swaps the directory args[0] with a symbolic link to args[1], as
// fast as it can, for args[2] seconds.
func linkRace(r *Report, args []string) {
	dir, link := args[0], args[0]+".link"
	if err := os.MkdirAll(dir, 0o777); err != nil {
		r.tried("mkdir", err)
		return
	}
	if err := os.Symlink(args[1], link); err != nil {
		r.tried("symlink", err)
		return
	}
	fmt.Println("racing")
	until := time.Now().Add(time.Duration(number(args, 2, 5)) * time.Second)
	for time.Now().Before(until) {
		for range 100 {
			if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err == nil {
				r.N++
			}
		}
	}
}

// dial tries TCP connections, all at once.
func dial(r *Report, args []string) {
	var wg sync.WaitGroup
	results := make([]error, len(args))
	locals := make([]string, len(args))
	for i, a := range args {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a)
			if err == nil {
				locals[i] = conn.LocalAddr().String()
				_ = conn.SetDeadline(time.Now().Add(time.Second))
				_, _ = conn.Write([]byte("attack\n"))
				conn.Close()
			}
			results[i] = err
		})
	}
	wg.Wait()
	for i, a := range args {
		r.add("tcp "+a, results[i] == nil, results[i], locals[i])
	}
	r.addresses()
}

func (r *Report) addresses() {
	var all []string
	if as, err := net.InterfaceAddrs(); err == nil {
		for _, a := range as {
			all = append(all, a.String())
		}
	}
	slices.Sort(all)
	r.fact("addresses", strings.Join(all, " "))
	if b, err := os.ReadFile("/proc/net/route"); err == nil {
		r.fact("routes", string(b))
	}
}

// udp sends the datagram args[0] to the addresses that follow.
func udp(r *Report, args []string) {
	for _, a := range args[1:] {
		conn, err := net.Dial("udp", a)
		if err == nil {
			for range 3 {
				_, err = conn.Write([]byte(args[0]))
			}
			conn.Close()
		}
		// Whether it arrived is for the receiver to say.
		r.add("udp "+a, false, err, "")
	}
}

// serve accepts connections on a port of all addresses for a number of
// seconds.
func serve(r *Report, args []string) {
	ln, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		r.tried("listen", err)
		return
	}
	r.addresses()
	fmt.Println("serving", r.Facts["addresses"])
	time.AfterFunc(time.Duration(number(args, 1, 10))*time.Second, func() { ln.Close() })
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		r.N++
		conn.Close()
	}
}

// hold keeps a connection busy and says when it is cut.
func hold(_ *Report, args []string) {
	conn, err := net.DialTimeout("tcp", args[0], 2*time.Second)
	if err != nil {
		fmt.Println("refused", err)
		os.Exit(1)
	}
	if raw, err := conn.(*net.TCPConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 3000)
		})
	}
	fmt.Println("connected")
	for {
		if _, err := conn.Write([]byte("still here\n")); err != nil {
			fmt.Println("cut", err)
			os.Exit(0)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ignore(s os.Signal) { signal.Ignore(s) }
