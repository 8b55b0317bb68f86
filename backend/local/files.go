package local

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/daytona-go/daytona/image"
	"golang.org/x/sys/unix"
)

// removeTree removes a directory with all that a sandbox left in it, whatever
// the modes and owners.
func (e *engine) removeTree(dir string) error {
	err := image.RemoveAll(dir)
	if err == nil || e.subIDs == nil {
		return err
	}
	// With newuidmap some are other users': root of a user namespace with the
	// sandboxes' mapping may remove them.
	return e.runMapped(context.Background(), *e.subIDs, "remove", dir)
}

// runMapped runs a command of the agent's binary as root of a user namespace.
func (e *engine) runMapped(ctx context.Context, ids idMapping, args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/4", append([]string{"boot-as-root"}, args...)...)
	cmd.ExtraFiles = []*os.File{r, e.agent}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL}
	if !ids.viaTools {
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids.uids, ids.gids
	}
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, c)
	}
	e.spawner.do(func() { err = cmd.Start() })
	if err != nil {
		return err
	}
	if ids.viaTools {
		if err := e.mapIDs(ctx, cmd.Process.Pid, ids); err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return err
		}
	}
	w.Close() // go
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s as root of a user namespace: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// subRange finds the first range of this user in /etc/subuid or /etc/subgid
// (subuid(5)).
func subRange(file string) (start, size int) {
	f, err := os.Open(file)
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	id := strconv.Itoa(os.Getuid())
	name := id
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		p := strings.Split(s.Text(), ":")
		if len(p) != 3 || (p[0] != name && p[0] != id) {
			continue
		}
		a, errA := strconv.Atoi(p[1])
		n, errN := strconv.Atoi(p[2])
		if errA == nil && errN == nil {
			return a, n
		}
	}
	return 0, 0
}

// probeIDMap tries whether a mount of a directory takes an id mapping.
func probeIDMap(dir string) bool {
	m, err := cloneMount(dir)
	if err != nil {
		return false
	}
	defer m.Close()
	ns, err := emptyUserNamespace()
	if err != nil {
		return false
	}
	defer ns.Close()
	return idmap(m, ns) == nil
}

// emptyUserNamespace makes a user namespace with a mapping and nobody in it.
func emptyUserNamespace() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	// Any program will do that waits for the end of its input.
	cat, err := exec.LookPath("cat")
	if err != nil {
		return nil, err
	}
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 28, Size: 65536}}
	cmd := exec.Command(cat)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/user")
	w.Close()
	_ = cmd.Wait()
	return ns, err
}
