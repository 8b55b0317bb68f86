package backendtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// RunSecurity attacks the boundary around a sandbox, from inside, through the
// interfaces and through images. A harness that lacks [Isolation] skips all of
// it: against a backend without a boundary the attacks would hit the host.
func RunSecurity(t *testing.T, h *Harness) { runChecks(t, h, "security", securityChecks()) }

func securityChecks() []check {
	inside := func(more ...Capability) []Capability { return append([]Capability{Isolation, Programs}, more...) }
	long := 3 * time.Minute
	return []check{
		{name: "S01_Privileges", needs: inside(), run: checkPrivileges},
		{name: "S02_Descriptors", needs: inside(), run: checkDescriptors},
		{name: "S03_AgentBinary", needs: inside(), run: checkAgentBinary},
		{name: "S04_DeviceSymlinks", needs: inside(TarImages), run: checkDeviceSymlinks},
		{name: "S05_ProcSymlink", needs: inside(TarImages), run: checkProcSymlink},
		{name: "S06_VolumeRace", needs: inside(), limit: long, run: checkVolumeRace},
		{name: "S07_Cgroup", needs: inside(), run: checkCgroup},
		{name: "S08_KernelSettings", needs: inside(), run: checkKernelSettings},
		{name: "S09_Remount", needs: inside(), run: checkRemount},
		{name: "S10_UserNamespace", needs: inside(), run: checkUserNamespace},
		{name: "S11_Syscalls", needs: inside(), run: checkSyscalls},
		{name: "S12_Secrets", needs: inside(), run: checkSecrets},
		{name: "S13_Devices", needs: inside(), run: checkDevices},
		{name: "S14_Agent", needs: inside(), run: checkAgent},
		{name: "S15_HostileImages", needs: inside(TarImages), limit: long, run: checkHostileImages},
		{name: "S16_FileRace", needs: inside(), limit: long, run: checkFileRace},
		{name: "S17_RecursiveLinks", needs: inside(Symlinks, Shell), run: checkRecursiveLinks},
		{name: "S18_EndlessFiles", needs: inside(Shell), run: checkEndlessFiles},
		{name: "S20_Resources", needs: inside(), limit: 5 * time.Minute, run: checkResourceAttacks},
		{name: "S21_DiskQuota", needs: inside(Disk), run: checkDiskQuota},
		{name: "S22_Zombies", needs: inside(), limit: long, run: checkZombies},
		{name: "S23_ProcessTree", needs: inside(Shell), run: checkEscapingTree},
		{name: "S24_Streams", needs: inside(Sessions, Shell), limit: long, run: checkStreams},
		{name: "S25_Network", needs: inside(Network), limit: long, run: checkNetworkDenied},
		{name: "S28_NetworkPolicies", needs: inside(Network), limit: long, run: checkNetworkPolicies},
	}
}

// hostFiles are hashed before and after attacks: those of the harness and the
// kernel's setting that escapes most often go for.
func (c *env) hostFiles() map[string]string {
	files := []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"}
	if c.h.HostFiles != nil {
		files = append(files, c.h.HostFiles(c.state)...)
	}
	sums := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			sums[f] = "unreadable"
			continue
		}
		sums[f] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return sums
}

func (c *env) hostUnchanged(before map[string]string) {
	c.Helper()
	for f, sum := range c.hostFiles() {
		if before[f] != sum {
			c.Errorf("%s of the host has changed", f)
		}
	}
}

// canary makes a directory on the host that no attack may touch or read, and
// returns it with a function that checks it.
func (c *env) canary() (dir string, check func()) {
	c.Helper()
	// World-accessible, so that only the boundary protects it.
	dir = filepath.Join(c.TempDir(), "canary")
	c.try("mkdir", os.Mkdir(dir, 0o777))
	for p := dir; len(p) > len(os.TempDir()); p = filepath.Dir(p) {
		_ = os.Chmod(p, 0o777)
	}
	c.try("write", os.WriteFile(filepath.Join(dir, "canary"), []byte("host"), 0o666))
	c.try("chmod", os.Chmod(filepath.Join(dir, "canary"), 0o666))
	return dir, func() {
		c.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			c.Errorf("a directory of the host: %v", err)
			return
		}
		for _, e := range entries {
			if e.Name() != "canary" {
				c.Errorf("%s/%s was planted on the host", dir, e.Name())
			}
		}
		b, err := os.ReadFile(filepath.Join(dir, "canary"))
		if err != nil || string(b) != "host" {
			c.Errorf("a file of the host was changed: %q, %v", b, err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "canary")); err == nil && fi.Mode().Perm() != 0o666 {
			c.Errorf("the mode of a file of the host was changed to %v", fi.Mode())
		}
	}
}

// Capability numbers from capabilities(7).
var forbiddenCaps = map[string]uint{
	"DAC_READ_SEARCH": 2, "NET_ADMIN": 12, "SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "SYS_BOOT": 22, "SYS_TIME": 25,
	"MAC_OVERRIDE": 32, "MAC_ADMIN": 33, "SYSLOG": 34, "PERFMON": 38, "BPF": 39, "CHECKPOINT_RESTORE": 40,
}

func checkPrivileges(c *env) {
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		check := func(how string, r report) {
			for _, set := range []string{"CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"} {
				bits, err := strconv.ParseUint(r.Facts[set], 16, 64)
				if err != nil {
					c.Errorf("%s: %s = %q", how, set, r.Facts[set])
					continue
				}
				for _, name := range slices.Sorted(maps.Keys(forbiddenCaps)) {
					if bits>>forbiddenCaps[name]&1 != 0 {
						c.Errorf("%s: %s has CAP_%s (%#x)", how, set, name, bits)
					}
				}
			}
			equal(c, how+": NoNewPrivs", r.Facts["NoNewPrivs"], "1")
			equal(c, how+": Seccomp mode", r.Facts["Seccomp"], "2")
			c.Logf("%s: uid_map %s, label %q", how, r.Facts["uid_map"], r.Facts["label"])
		}
		check("Command", c.attack(sb, "privileges"))
		res, err := sb.Process().Exec(c.ctx, attackerPath+" privileges", nil)
		c.try("exec", err)
		r, err := parseReport([]byte(res.Output), nil)
		c.try("report", err)
		check("Exec", r)
		if c.has(Sessions) {
			s, err := sb.Process().CreateSession(c.ctx, "s")
			c.try("session", err)
			res, err := s.Run(c.ctx, attackerPath+" privileges")
			c.try("run", err)
			r, err := parseReport([]byte(res.Stdout), nil)
			c.try("report", err)
			check("Session", r)
		}
	})
}

func checkDescriptors(c *env) {
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		c.noneWorked(c.attack(sb, "fds"))
		for n := 3; n < 32; n++ {
			dir := fmt.Sprintf("/proc/self/fd/%d", n)
			cmd := sb.Process().Command(c.ctx, attackerPath, "touch")
			cmd.Dir = dir
			if err := cmd.Run(); err == nil {
				c.Errorf("a command started in %s", dir)
			}
			if n > 12 {
				continue
			}
			if r, err := sb.Process().Exec(c.ctx, "pwd", &daytona.ExecOptions{Dir: dir}); err == nil && r.ExitCode == 0 {
				c.Errorf("Exec started in %s: %q", dir, r.Output)
			}
			if c.has(Terminals) {
				if p, err := sb.Process().CreatePTY(c.ctx, daytona.PTYOptions{Dir: dir}); err == nil {
					c.Errorf("a PTY started in %s", dir)
					_ = p.Kill(c.ctx)
				}
			}
		}
	})
	// The same as a working directory of the whole sandbox. It may be made as
	// an ordinary directory where /proc allows that, which it does not.
	for n := 3; n < 12; n++ {
		sb, err := c.client.Create(c.ctx, c.spec(func(s *daytona.Spec) { s.WorkDir = fmt.Sprintf("/proc/self/fd/%d", n) }))
		if err == nil {
			c.Errorf("a sandbox with working directory /proc/self/fd/%d was created", n)
			c.discard(sb)
		}
	}
	c.eventually(5*time.Second, "refused creates leave nothing", func() error {
		if l := c.list(c.backend, daytona.Filter{}); len(l) > 0 {
			return fmt.Errorf("%d sandboxes", len(l))
		}
		return nil
	})
}

func checkAgentBinary(c *env) {
	c.open()
	before := c.hostFiles()
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		// The attack of 2019 waits for execs: give it some.
		run, _ := c.begin(sb, "spin", "1", "0")
		c.kill(run)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 30 {
				_, _ = sb.Process().Exec(c.ctx, "true", nil)
			}
		}()
		r := c.attack(sb, "exe", "2")
		<-done
		c.noneWorked(r)
	})
	c.hostUnchanged(before)
}

// rootfs makes a tar image: the attacker, the directories that any root needs
// and what add adds. Entries of add come before the directories where early
// is set, so that they can pose as them.
func (c *env) rootfs(entries []tar.Header, contents map[string]string) string {
	c.Helper()
	name := filepath.Join(c.TempDir(), "rootfs.tar")
	f, err := os.Create(name)
	c.try("create", err)
	defer f.Close()
	tw := tar.NewWriter(f)
	put := func(h tar.Header, r io.Reader) {
		c.Helper()
		c.try("tar header "+h.Name, tw.WriteHeader(&h))
		if r != nil {
			_, err := io.Copy(tw, r)
			c.try("tar", err)
		}
	}
	posed := map[string]bool{}
	for _, h := range entries {
		posed[strings.Trim(h.Name, "/")] = true
	}
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "usr", "usr/bin", "var", "home", "run"} {
		if !posed[d] {
			mode := int64(0o755)
			if d == "tmp" {
				mode = 0o1777
			}
			put(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: mode}, nil)
		}
	}
	for n, s := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaytona:x:1000:1000::/home/daytona:/bin/sh\n", "etc/group": "root:x:0:\ndaytona:x:1000:\n",
	} {
		if !posed[n] {
			put(tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o644, Size: int64(len(s))}, strings.NewReader(s))
		}
	}
	bin, err := os.ReadFile(attacker(c.T))
	c.try("read the attacker", err)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/attacker", Mode: 0o755, Size: int64(len(bin))}, bytes.NewReader(bin))
	for _, h := range entries {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = contents[h.Name]
		}
		h.Size = int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o777
		}
		put(h, strings.NewReader(content))
	}
	c.try("tar", tw.Close())
	return "tar:" + name
}

// fromImage creates a sandbox of an image that may be refused.
func (c *env) fromImage(image string) (daytona.Sandbox, error) {
	sb, err := c.open().Create(c.ctx, daytona.Spec{Image: image})
	if err == nil {
		c.Cleanup(func() { c.discard(sb) })
		return sb, nil
	}
	if k := daytona.KindOf(err); k == daytona.KindInternal {
		c.Logf("refused with an error of kind internal: %v", err)
	} else {
		c.Logf("refused: %v", err)
	}
	return nil, err
}

// harmlessImage demands that the suite's own image works, or refusals of its
// variants would prove nothing.
func (c *env) harmlessImage() {
	c.Helper()
	sb, err := c.fromImage(c.rootfs(nil, nil))
	if err != nil {
		c.Fatalf("a harmless tar image is refused: %v", err)
	}
	if _, err := c.imageAttack(sb, "touch", "/tmp/x"); err != nil {
		c.Fatalf("run a program of a tar image: %v", err)
	}
}

func checkDeviceSymlinks(c *env) {
	c.open()
	before := c.hostFiles()
	c.harmlessImage()
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for what, entries := range map[string][]tar.Header{
		"dev/null":    {link("dev/null", "/proc/sys/kernel/core_pattern")},
		"dev/console": {link("dev/console", "/proc/sys/kernel/core_pattern")},
		"dev/pts":     {link("dev/pts", "/proc/sys/kernel")},
		"dev/pts/0":   {{Typeflag: tar.TypeDir, Name: "dev/pts"}, link("dev/pts/0", "/proc/sysrq-trigger")},
		"dev/shm":     {link("dev/shm", "/proc/self/cwd")},
		"dev/fd":      {link("dev/fd", "/proc/1/root")},
		"dev":         {link("dev", "/proc/1/root/dev")},
		"dev loop":    {link("dev", "dev")},
		"sys":         {link("sys", "/proc/sys")},
		"tmp":         {link("tmp", "../../../../../../tmp")},
		"etc":         {link("etc", "/proc/self/cwd/../../../../etc")},
	} {
		c.sub(strings.ReplaceAll(what, "/", "_"), nil, func(c *env) {
			sb, err := c.fromImage(c.rootfs(entries, nil))
			if err != nil {
				return
			}
			fi, err := sb.FileSystem().Stat(c.ctx, "/dev/null")
			if err != nil || fi.Mode()&fs.ModeCharDevice == 0 {
				c.Errorf("/dev/null is %v, %v; want the device or a refusal to create", fi.Mode(), err)
			}
			r, err := c.imageAttack(sb, "settings")
			c.try("attack", err)
			c.noneWorked(r)
			r, err = c.imageAttack(sb, "fds")
			c.try("attack", err)
			c.noneWorked(r)
		})
	}
	c.hostUnchanged(before)
}

// imageAttack runs the attacker that an image brought.
func (c *env) imageAttack(sb daytona.Sandbox, args ...string) (report, error) {
	cmd := sb.Process().Command(c.ctx, "/bin/attacker", args...)
	cmd.Dir, cmd.Timeout = "/", c.slow(40*time.Second)
	out, err := cmd.Output()
	return parseReport(out, err)
}

func checkProcSymlink(c *env) {
	c.open()
	c.harmlessImage()
	before := c.hostFiles()
	for _, to := range []string{"/tmp/fake", "../../..", "/sys", "tmp"} {
		sb, err := c.fromImage(c.rootfs([]tar.Header{{Typeflag: tar.TypeSymlink, Name: "proc", Linkname: to}}, nil))
		if err != nil {
			continue
		}
		r, err := c.imageAttack(sb, "privileges")
		c.try("attack", err)
		if r.Facts["NoNewPrivs"] != "1" || r.Facts["Seccomp"] != "2" {
			c.Errorf("/proc as a symlink to %s: /proc/self/status says %v", to, r.Facts)
		}
		r, err = c.imageAttack(sb, "settings")
		c.try("attack", err)
		c.noneWorked(r)
	}
	c.hostUnchanged(before)
}

func checkVolumeRace(c *env) {
	v, err := c.open().Volumes()
	if err != nil {
		c.Skipf("backend %s has no volumes", c.backend.Name())
	}
	_, err = v.CreateVolume(c.ctx, daytona.VolumeSpec{Name: "raced"})
	c.try("create", err)
	dir, check := c.canary()
	racer := c.victim(func(s *daytona.Spec) {
		s.Volumes = []daytona.VolumeMount{{Volume: "raced", MountPath: "/data"}}
	})
	run, line := c.begin(racer, "linkrace", "/data/sub", dir, "10")
	if strings.Contains(line, `"err":"ENOTSUP"`) {
		c.Skip("the volume takes no symbolic links, which the attack is made of")
	}
	equal(c, "the race", line, "racing")
	made := 0
	for begin := time.Now(); time.Since(begin) < 8*time.Second; {
		sb, err := c.client.Create(c.ctx, c.spec(func(s *daytona.Spec) {
			s.Volumes = []daytona.VolumeMount{{Volume: "raced", MountPath: "/m", Subpath: "sub"}}
		}))
		if err != nil {
			continue // caught in the act and refused
		}
		made++
		if _, err := sb.FileSystem().Stat(c.ctx, "/m/canary"); err == nil {
			c.Error("a directory of the host was mounted into a sandbox")
		}
		_ = sb.FileSystem().WriteFile(c.ctx, "/m/planted", []byte("x"), 0)
		c.discard(sb)
	}
	c.kill(run)
	c.Logf("%d sandboxes were created against the race", made)
	check()
}

func checkCgroup(c *env) {
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		r := c.attack(sb, "cgroup")
		c.Logf("/proc/self/cgroup: %q", r.Facts["/proc/self/cgroup"])
		var own []string
		if sb.Info().User == "0" {
			// The root of a sandbox may order its own subtree of version 2:
			// what holds the sandbox's limits is above what it sees.
			for _, a := range r.Attempts {
				switch base := strings.TrimSuffix(filepath.Base(a.Name), " for writing"); base {
				case "cgroup.procs", "cgroup.subtree_control", "cgroup.freeze", "cgroup.kill", "daytona-attack":
					own = append(own, a.Name)
				}
			}
		}
		c.noneWorked(r, own...)
	})
}

func checkKernelSettings(c *env) {
	c.open()
	before := c.hostFiles()
	c.eachUser(func(c *env, sb daytona.Sandbox) { c.noneWorked(c.attack(sb, "settings")) })
	c.hostUnchanged(before)
}

func checkRemount(c *env) {
	c.open()
	v, err := c.client.Volumes()
	withVolume := func(*daytona.Spec) {}
	if err == nil {
		_, err := v.CreateVolume(c.ctx, daytona.VolumeSpec{Name: "ro"})
		c.try("create a volume", err)
		withVolume = func(s *daytona.Spec) {
			s.Volumes = []daytona.VolumeMount{{Volume: "ro", MountPath: "/mnt/ro", ReadOnly: true}}
		}
	}
	for _, user := range []string{"", "0"} {
		if user != "" && !c.has(Users) {
			continue
		}
		sb := c.victim(withVolume, func(s *daytona.Spec) {
			if user != "" {
				s.User = user
			}
		})
		r := c.attack(sb, "mounts")
		c.noneWorked(r)
		if _, mounted := r.Facts["mount /mnt/ro"]; err == nil && !mounted {
			c.Errorf("the attack did not find the read-only volume: %v", r.Facts)
		}
	}
}

func checkUserNamespace(c *env) {
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		r := c.attack(sb, "userns")
		c.Logf("policy: user namespaces are %s", r.Facts["user namespace"])
		if r.Facts["user namespace"] != "allowed" {
			return
		}
		// Mounts of its own are a nested namespace's right. What was locked
		// read-only and what the filter denies must stay so.
		c.noneWorked(r, "mount tmpfs", "mount overlay", "mount ramfs", "mount devpts", "mount proc", "bind mount", "mount", "umount2", "fsopen", "open_tree", "move_mount", "setns", "pivot_root", "umount")
		for _, a := range r.Attempts {
			if a.Worked && (strings.HasPrefix(a.Name, "mount_setattr /") || strings.HasPrefix(a.Name, "mount sysfs") || strings.HasPrefix(a.Name, "mount cgroup")) {
				c.Errorf("in a user namespace of the attacker: %s worked", a.Name)
			}
		}
	})
}

func checkSyscalls(c *env) {
	c.eachUser(func(c *env, sb daytona.Sandbox) { c.noneWorked(c.attack(sb, "syscalls")) })
}

func checkSecrets(c *env) {
	const secret = "hunter2-of-the-host"
	old, had := os.LookupEnv("DAYTONA_BACKENDTEST_SECRET")
	os.Setenv("DAYTONA_BACKENDTEST_SECRET", secret)
	defer func() {
		os.Unsetenv("DAYTONA_BACKENDTEST_SECRET")
		if had {
			os.Setenv("DAYTONA_BACKENDTEST_SECRET", old)
		}
	}()
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		r := c.attack(sb, "secrets")
		c.noneWorked(r)
		for k, v := range r.Facts {
			if strings.Contains(v, secret) {
				c.Errorf("the host's environment shows in %s", k)
			}
			if strings.HasPrefix(k, "cmdline") && strings.Contains(v, os.Args[0]) {
				c.Errorf("a process of the host is visible: %s: %s", k, v)
			}
		}
	})
}

func checkDevices(c *env) {
	c.eachUser(func(c *env, sb daytona.Sandbox) { c.noneWorked(c.attack(sb, "devices")) })
}

var tokenLike = regexp.MustCompile(`(?i)(token|secret|password|apikey|api_key)[=: ]\S{8,}`)

func checkAgent(c *env) {
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		r := c.attack(sb, "agent")
		// The root of a sandbox may hinder its own agent, but not read or
		// steer it: what the agent knows and does is not the sandbox's.
		isRoot := sb.Info().User == "0"
		var hinder []string
		if isRoot {
			for _, a := range r.Attempts {
				for _, w := range []string{"/oom_score_adj", "/comm", "/coredump_filter", "/clear_refs", "prlimit ", "sched_setscheduler "} {
					if strings.HasSuffix(a.Name, w) || strings.HasPrefix(a.Name, w) {
						hinder = append(hinder, a.Name)
					}
				}
			}
			hinder = append(hinder, "kill -")
		}
		c.noneWorked(r, hinder...)
		for k, v := range r.Facts {
			if m := tokenLike.FindString(v); m != "" {
				c.Errorf("what looks like a credential is in the %s: %s", k, clip(m))
			}
		}
		// The killing may well kill the attacker's own connection; what counts
		// is that the sandbox works after it.
		if r, err := c.tryAttack(sb, "agent", "kill"); err == nil {
			c.noneWorked(r, hinder...)
		} else {
			c.Logf("the attack ended with %v", err)
		}
		if isRoot {
			// It may end its sandbox so; the backend must then know it, and
			// start it again.
			c.eventually(10*time.Second, "a sandbox whose root has killed the agent can be used or started", func() error {
				_, err := sb.Process().Exec(c.ctx, "echo alive", nil)
				if err != nil {
					_ = sb.Start(c.ctx)
				}
				return err
			})
			return
		}
		c.eventually(5*time.Second, "the sandbox works after its user has tried to kill the agent", func() error {
			_, err := sb.Process().Exec(c.ctx, "echo alive", nil)
			return err
		})
		info, err := sb.Refresh(c.ctx)
		c.try("refresh", err)
		equal(c, "State", info.State, daytona.StateStarted)
	})
}

func checkHostileImages(c *env) {
	c.open()
	c.harmlessImage()
	before := c.hostFiles()
	dir, check := c.canary()
	up := strings.Repeat("../", 40)
	host := filepath.Join(dir, "canary")
	reg := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	sym := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	for what, entries := range map[string][]tar.Header{
		"dot-dot":                 {reg(up + dir[1:] + "/planted")},
		"dot-dot inside":          {reg("usr/../../../" + up + dir[1:] + "/planted")},
		"absolute":                {reg(dir + "/planted")},
		"symlink then file":       {sym("usr/out", dir), reg("usr/out/planted")},
		"relative symlink":        {sym("usr/out", up+dir[1:]), reg("usr/out/planted")},
		"symlink chain":           {sym("usr/a", ".."), sym("usr/b", "a/.."), sym("usr/c", "b/"+up+dir[1:]), reg("usr/c/planted")},
		"file through symlink":    {sym("usr/f", host), reg("usr/f")},
		"hardlink to the host":    {hard("usr/hard", host), reg("usr/hard")},
		"hardlink up":             {hard("usr/hard", up+host[1:]), reg("usr/hard")},
		"hardlink via symlink":    {sym("usr/s", dir), hard("usr/hard", "usr/s/canary"), reg("usr/hard")},
		"symlinked directory":     {sym("usr/d", dir), {Typeflag: tar.TypeDir, Name: "usr/d/planted"}},
		"chmod through symlink":   {sym("usr/d", dir), {Typeflag: tar.TypeDir, Name: "usr/d", Mode: 0o700}},
		"whiteout through link":   {sym("usr/d", dir), reg("usr/d/.wh.canary")},
		"opaque through link":     {sym("usr/d", dir), reg("usr/d/.wh..wh..opq")},
		"whiteout of dot-dot":     {reg("usr/.wh..."), reg("usr/.wh.."), reg(".wh...")},
		"root replaced by a link": {sym(".", dir), reg("planted")},
		"block device":            {{Typeflag: tar.TypeBlock, Name: "usr/sda", Devmajor: 8}},
		"char device":             {{Typeflag: tar.TypeChar, Name: "usr/mem", Devmajor: 1, Devminor: 1}},
		"fifo as passwd":          {{Typeflag: tar.TypeFifo, Name: "etc/passwd"}},
		"passwd as a link":        {sym("etc/passwd", host)},
		"home as a link":          {sym("home", dir)},
		"same name twice":         {reg("usr/x"), {Typeflag: tar.TypeDir, Name: "usr/x"}, sym("usr/x", dir), reg("usr/x/planted")},
		"NUL-like long name":      {reg("usr/" + strings.Repeat("n", 300))},
		"deep":                    {reg(strings.Repeat("d/", 2500) + "f")},
		"setuid":                  {{Typeflag: tar.TypeReg, Name: "usr/bin/su", Mode: 0o4755}},
	} {
		c.sub(strings.ReplaceAll(what, " ", "_"), nil, func(c *env) {
			contents := map[string]string{}
			for _, e := range entries {
				contents[e.Name] = "planted"
			}
			img := c.rootfs(entries, contents)
			sb, err := c.fromImage(img)
			check()
			if err != nil {
				return
			}
			// Alive, it must not let the host's file through either.
			for _, p := range []string{"/usr/f", "/usr/hard", "/usr/out/canary", "/usr/d/canary", "/usr/c/canary", "/home/canary", "/etc/passwd"} {
				ctx, cancel := context.WithTimeout(c.ctx, c.slow(3*time.Second))
				b, err := sb.FileSystem().ReadFile(ctx, p)
				cancel()
				if err == nil && string(b) == "host" {
					c.Errorf("%s in the sandbox is the host's file", p)
				}
			}
			if r, err := c.imageAttack(sb, "devices"); err == nil {
				c.noneWorked(r)
			}
			for _, p := range []string{"/usr/sda", "/usr/mem"} {
				ctx, cancel := context.WithTimeout(c.ctx, c.slow(3*time.Second))
				if f, err := sb.FileSystem().Open(ctx, p); err == nil {
					if n, _ := f.Read(make([]byte, 1)); n > 0 {
						c.Errorf("the device %s of the image can be read", p)
					}
					f.Close()
				}
				cancel()
			}
			check()
		})
	}
	c.sub("not_a_tar", nil, func(c *env) {
		for n, b := range map[string][]byte{"empty": {}, "text": []byte("no tar at all"), "gzip cut short": {0x1f, 0x8b, 8, 0, 0}, "zeros": make([]byte, 4096)} {
			p := filepath.Join(c.TempDir(), "image.tar")
			c.try("write", os.WriteFile(p, b, 0o644))
			if sb, err := c.client.Create(c.ctx, daytona.Spec{Image: "tar:" + p}); err == nil {
				c.Logf("an image that is %s was taken for an empty root", n)
				c.discard(sb)
			}
		}
	})
	check()
	c.hostUnchanged(before)
}

// checkFileRace uploads, downloads, moves, replaces and searches while the
// path is swapped for a link that leads, for whoever resolves it on the host,
// into a directory of the host.
func checkFileRace(c *env) {
	sb := c.victim()
	dir, check := c.canary()
	race := c.inWorkDir(sb, "race")
	run, line := c.begin(sb, "linkrace", race, dir, "15")
	equal(c, "the race", line, "racing")
	fsys := sb.FileSystem()
	var wg sync.WaitGroup
	until := time.Now().Add(10 * time.Second)
	leaked := make(chan string, 1)
	see := func(b []byte) {
		if strings.Contains(string(b), "host") {
			select {
			case leaked <- string(b):
			default:
			}
		}
	}
	for _, op := range []func(){
		func() { _, _ = fsys.Upload(c.ctx, race+"/planted", strings.NewReader("attack")) },
		func() { _ = fsys.WriteFile(c.ctx, race+"/canary", []byte("attack"), 0o600) },
		func() { b, _ := fsys.ReadFile(c.ctx, race+"/canary"); see(b) },
		func() { _ = fsys.Chmod(c.ctx, race+"/canary", 0o7777) },
		func() { _ = fsys.Mkdir(c.ctx, race+"/planted-dir", 0) },
		func() { _ = fsys.Rename(c.ctx, race+"/canary", race+"/planted2") },
		func() { _, _ = fsys.Replace(c.ctx, []string{race + "/canary"}, "host", "attack") },
		func() {
			m, _ := fsys.Grep(c.ctx, race, "host")
			for _, x := range m {
				see([]byte(x.Text))
			}
		},
		func() { _ = fsys.RemoveAll(c.ctx, race+"/canary") },
		func() {
			_ = fsys.UploadFiles(c.ctx, []daytona.FileUpload{{Path: race + "/planted3", Content: strings.NewReader("x")}})
		},
	} {
		wg.Go(func() {
			for time.Now().Before(until) && c.ctx.Err() == nil {
				op()
			}
		})
	}
	c.try("file operations against a race", c.within(40*time.Second, func() error { wg.Wait(); return nil }))
	c.kill(run)
	select {
	case s := <-leaked:
		c.Errorf("a file of the host came through a link: %q", s)
	default:
	}
	check()
	// Traversal by the path itself.
	for _, p := range []string{dir + "/canary", strings.Repeat("../", 40) + dir[1:] + "/canary", "/proc/1/root" + dir + "/canary", "/proc/self/root" + dir + "/canary", "/proc/self/cwd/../../../../../../" + dir + "/canary", strings.Repeat("..%2f", 20) + "etc/passwd"} {
		if b, err := fsys.ReadFile(c.ctx, p); err == nil && string(b) == "host" {
			c.Errorf("ReadFile(%q) reads the host's file", p)
		}
		_ = fsys.WriteFile(c.ctx, p, []byte("attack"), 0)
		check()
	}
	equal(c, "a command after the race", c.sh(sb, "echo ok"), "ok")
}

func checkRecursiveLinks(c *env) {
	sb := c.create()
	dir, check := c.canary()
	c.sh(sb, fmt.Sprintf("mkdir -p tree/sub && ln -s %s tree/link && ln -s / tree/root && ln -s /proc tree/sub/proc && ln -s .. tree/sub/up", dir))
	c.sh(sb, "mkdir outside && echo kept > outside/f && ln -s ../outside tree/outside")
	fsys := sb.FileSystem()
	if _, err := fsys.Grep(c.ctx, "tree", "host"); err != nil {
		c.Logf("grep: %v", err)
	}
	if found, err := fsys.Glob(c.ctx, "tree", "canary"); err == nil && len(found) > 0 {
		c.Errorf("Glob followed a link: %q", found)
	}
	_ = fsys.Chmod(c.ctx, "tree", 0o700)
	c.try("RemoveAll", fsys.RemoveAll(c.ctx, "tree"))
	b, err := fsys.ReadFile(c.ctx, "outside/f")
	c.try("what a removed link pointed to", err)
	equal(c, "content", string(b), "kept\n")
	equal(c, "the root after a removed link to it", c.sh(sb, "test -d /etc && echo there"), "there")
	check()

	v, err := c.client.Volumes()
	if err != nil {
		return
	}
	_, err = v.CreateVolume(c.ctx, daytona.VolumeSpec{Name: "users"})
	c.try("create", err)
	all := c.create(func(s *daytona.Spec) { s.Volumes = []daytona.VolumeMount{{Volume: "users", MountPath: "/all"}} })
	c.try("write", all.FileSystem().WriteFile(c.ctx, "/all/users/bob/secret", []byte("bob's"), 0o644))
	alice := c.create(func(s *daytona.Spec) {
		s.Volumes = []daytona.VolumeMount{{Volume: "users", MountPath: "/mine", Subpath: "users/alice"}}
	})
	c.sh(alice, "ln -s ../bob /mine/bob; ln -s ../../users /mine/users; true")
	for _, p := range []string{"/mine/bob/secret", "/mine/users/bob/secret", "/mine/../bob/secret"} {
		if b, err := alice.FileSystem().ReadFile(c.ctx, p); err == nil {
			c.Errorf("a mount of users/alice reads %s: %q", p, b)
		}
	}
	// A subpath that a tenant has turned into a link must not be followed out.
	r, err := all.Process().Exec(c.ctx, fmt.Sprintf("ln -s %s /all/users/eve && ln -s bob /all/users/mallory", dir), nil)
	c.try("exec", err)
	if strings.Contains(r.Output, "Operation not supported") {
		c.Log("the volume takes no symbolic links")
		return
	}
	equal(c, "exit code of ln", r.ExitCode, 0)
	for _, sub := range []string{"users/eve", "users/mallory"} {
		sb, err := c.client.Create(c.ctx, c.spec(func(s *daytona.Spec) {
			s.Volumes = []daytona.VolumeMount{{Volume: "users", MountPath: "/mine", Subpath: sub}}
		}))
		if err != nil {
			continue
		}
		for _, f := range []string{"canary", "secret"} {
			if _, err := sb.FileSystem().Stat(c.ctx, "/mine/"+f); err == nil {
				c.Errorf("a subpath that is a link was followed: /mine/%s of %s", f, sub)
			}
		}
		c.discard(sb)
	}
	check()
}

// limitedWriter fails once it has got n bytes.
type limitedWriter struct{ n int64 }

var errEnough = errors.New("enough")

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.n -= int64(len(p)); w.n < 0 {
		return 0, errEnough
	}
	return len(p), nil
}

func checkEndlessFiles(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	c.sh(sb, "mkfifo pipe")
	for _, p := range []string{"/dev/zero", "/dev/urandom", "pipe", "/proc/kcore", "/dev/tty", "/proc/kmsg", "/dev/stdin", "/proc/self/mem"} {
		ctx, cancel := context.WithTimeout(c.ctx, c.slow(3*time.Second))
		begin := time.Now()
		err := c.within(20*time.Second, func() error { _, err := fsys.Download(ctx, p, &limitedWriter{32 << 20}); return err })
		cancel()
		if d := time.Since(begin); d > c.slow(8*time.Second) {
			c.Errorf("Download of %s returned %v after a limit of 3s", p, d)
		}
		c.Logf("Download of %s: %v", p, err)
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.slow(3*time.Second))
	err := c.within(20*time.Second, func() error { _, err := fsys.Upload(ctx, "pipe", strings.NewReader("x")); return err })
	cancel()
	c.Logf("Upload onto a FIFO: %v", err)
	ctx, cancel = context.WithTimeout(c.ctx, c.slow(5*time.Second))
	err = c.within(20*time.Second, func() error { _, err := fsys.Grep(ctx, ".", "text"); return err })
	cancel()
	c.Logf("Grep over a FIFO: %v", err)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		c.Error("Grep hangs on a FIFO")
	}
	equal(c, "a command afterwards", c.sh(sb, "echo ok"), "ok")
	r, err := fsys.ReadDir(c.ctx, ".")
	c.try("readdir", err)
	equal(c, "entries", len(r) >= 1, true)
}

func checkEscapingTree(c *env) {
	sb := c.victim()
	for i, how := range []string{"timeout", "cancel"} {
		mark := fmt.Sprintf("mark%d%d", i, time.Now().UnixNano())
		ctx, cancel := context.WithCancel(c.ctx)
		cmd := sb.Process().Command(ctx, attackerPath, "family", mark)
		var out LockedBuffer
		cmd.Stdout = &out
		if how == "timeout" {
			cmd.Timeout = 2 * time.Second
		}
		c.try("start", cmd.Start())
		c.waitForText(&out, "started")
		c.eventually(5*time.Second, "the tree is up", func() error {
			if n := len(c.processesLike(sb, mark)); n < 5 {
				return fmt.Errorf("%d processes", n)
			}
			return nil
		})
		if how == "cancel" {
			cancel()
		}
		err := c.within(15*time.Second, cmd.Wait)
		if how == "timeout" && !errors.Is(err, daytona.ErrTimeout) {
			c.Errorf("Wait: %v, want ErrTimeout", err)
		}
		cancel()
		c.eventually(time.Second, "after "+how+" the whole tree is gone", func() error {
			if l := c.processesLike(sb, mark); len(l) > 0 {
				return fmt.Errorf("%d processes, such as %q", len(l), l[0])
			}
			return nil
		})
	}
}

func checkStreams(c *env) {
	sb := c.victim()
	s, err := sb.Process().CreateSession(c.ctx, "flood")
	c.try("session", err)
	m := newHeapMeter()
	cmd, err := s.Start(c.ctx, attackerPath+" flood 300", nil)
	c.try("start", err)
	c.try("follow 300 MiB", c.within(60*time.Second, func() error { return cmd.Follow(c.ctx, m, nil) }))
	if m.grown() > 32<<20 {
		c.Errorf("the live heap grew by %d MiB while 300 MiB of a session were followed", m.grown()>>20)
	}
	c.try("delete", s.Delete(c.ctx))
	r := c.attack(sb, "privileges")
	equal(c, "the sandbox after the flood", r.Facts["NoNewPrivs"], "1")
}
