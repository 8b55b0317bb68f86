package port

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// searchTime is how long the processes of new sockets are looked for: a
	// sandbox may be full of processes and descriptors.
	searchTime = 200 * time.Millisecond
	// commandLimit of the arguments of a process, in bytes.
	commandLimit = 4 << 10
)

// listener is who listens on a port and address.
type listener struct {
	socket
	wire wire.Listener
}

// listeners returns who listens, sorted, one for each port and address: with
// SO_REUSEPORT several sockets may share these, of which the first that there
// was stands for all. before is what was found the last time, and is believed of
// sockets that are still there.
func (s *Service) listeners(before []listener) ([]listener, error) {
	sockets, err := sockets()
	if err != nil {
		return nil, err
	}
	known := make(map[socket]*listener, len(before))
	for i := range before {
		known[before[i].socket] = &before[i]
	}
	var list []listener
	wanted := map[uint32]int{} // by inode, the index in list
	for len(sockets) > 0 {
		n := 1
		for n < len(sockets) && sockets[n].port == sockets[0].port && sockets[n].addr == sockets[0].addr {
			n++
		}
		same := sockets[:n]
		sockets = sockets[n:]
		if i := slices.IndexFunc(same, func(s socket) bool { return known[s] != nil }); i >= 0 {
			list = append(list, *known[same[i]])
			continue
		}
		wanted[same[0].inode] = len(list)
		list = append(list, listener{same[0], wire.Listener{Port: same[0].port, Address: same[0].addr.String(), UID: same[0].uid}})
	}
	if len(wanted) > 0 {
		s.findOwners(list, wanted)
	}
	return list, nil
}

// findOwners fills in the processes of sockets.
func (s *Service) findOwners(list []listener, wanted map[uint32]int) {
	pids := processes()
	end := time.Now().Add(searchTime)
	search := func() error {
		for _, pid := range pids {
			if len(wanted) == 0 || time.Now().After(end) {
				break
			}
			search(pid, end, func(inode uint32) {
				if i, ok := wanted[inode]; ok {
					delete(wanted, inode)
					describe(&list[i].wire, pid)
				}
			})
		}
		return nil
	}
	// What the agent may not look into, since it is root without the capability to
	// do so, its user may, and the other way round.
	_ = s.account.Do(search)
	_ = search()
}

// processes returns the numbers of all processes, in order.
func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// search calls found with the inodes of a process's sockets.
func search(pid int, end time.Time, found func(inode uint32)) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	buf, target := make([]byte, 8<<10), make([]byte, 64)
	var names []string
	for time.Now().Before(end) {
		n, err := unix.Getdents(dir, buf)
		if err != nil || n <= 0 {
			return
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			n, err := unix.Readlinkat(dir, name, target)
			if err != nil {
				continue
			}
			if number, ok := strings.CutPrefix(string(target[:n]), "socket:["); ok {
				if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32); err == nil {
					found(uint32(inode))
				}
			}
		}
	}
}

// describe says what is known of a process. All of it is the process's own
// choice.
func describe(l *wire.Listener, pid int) {
	at := "/proc/" + strconv.Itoa(pid)
	l.PID = pid
	if name, err := os.ReadFile(at + "/comm"); err == nil {
		l.Process = strings.ToValidUTF8(strings.TrimSuffix(string(name), "\n"), "�")
	}
	f, err := os.Open(at + "/cmdline")
	if err != nil {
		return
	}
	defer f.Close()
	b := make([]byte, commandLimit)
	n, _ := f.Read(b)
	if n == 0 {
		return // a kernel's process
	}
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(b[:n], []byte{0}), []byte{0}) {
		l.Command = append(l.Command, strings.ToValidUTF8(string(arg), "�"))
	}
}
