package backendtest

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

func inputChecks() []check {
	return []check{
		{name: "BadInput", run: checkBadInput},
		{name: "MissingImage", needs: []Capability{Images}, run: checkMissingImage},
		{name: "MissingSnapshot", run: checkMissingSnapshot},
		{name: "RefuseOrEnforce", limit: 2 * time.Minute, run: checkRefuseOrEnforce},
		{name: "DiskFull", needs: []Capability{Disk}, run: checkDiskFull},
	}
}

// badSpecs has one entry a rule of daytona.Spec; field is where the error
// must point.
func badSpecs() []struct {
	field string
	set   func(*daytona.Spec)
} {
	type S = *daytona.Spec
	vol := func(v daytona.VolumeMount) func(S) {
		return func(s S) { s.Volumes = []daytona.VolumeMount{v} }
	}
	return []struct {
		field string
		set   func(S)
	}{
		{"Name", func(s S) { s.Name = "-leading" }},
		{"Name", func(s S) { s.Name = "with space" }},
		{"Name", func(s S) { s.Name = "../up" }},
		{"Name", func(s S) { s.Name = "a\x00b" }},
		{"Name", func(s S) { s.Name = "ünicode" }},
		{"Name", func(s S) { s.Name = strings.Repeat("n", 64) }},
		{"Image", func(s S) { s.Image, s.Snapshot = "debian:12", "snap" }},
		{"Image", func(s S) { s.Image = "debian\n:12" }},
		{"User", func(s S) { s.User = "root; id" }},
		{"User", func(s S) { s.User = "1:2:3" }},
		{"User", func(s S) { s.User = "-1" }},
		{"WorkDir", func(s S) { s.WorkDir = "relative" }},
		{"WorkDir", func(s S) { s.WorkDir = "/a/../b" }},
		{"WorkDir", func(s S) { s.WorkDir = "/a\x00" }},
		{"Env", func(s S) { s.Env = map[string]string{"1A": "x"} }},
		{"Env", func(s S) { s.Env = map[string]string{"A=B": "x"} }},
		{"Env", func(s S) { s.Env = map[string]string{"": "x"} }},
		{"Env[A]", func(s S) { s.Env = map[string]string{"A": "x\x00"} }},
		{"Labels", func(s S) { s.Labels = map[string]string{"": "x"} }},
		{"Entrypoint", func(s S) { s.Entrypoint = []string{""} }},
		{"Entrypoint", func(s S) { s.Entrypoint = []string{"sh", "a\x00"} }},
		{"Language", func(s S) { s.Language = "cobol" }},
		{"Resources.CPU", func(s S) { s.Resources.CPU = -1 }},
		{"Resources.CPU", func(s S) { s.Resources.CPU = math.NaN() }},
		{"Resources.CPU", func(s S) { s.Resources.CPU = math.Inf(1) }},
		{"Resources.CPU", func(s S) { s.Resources.CPU = 0.001 }},
		{"Resources.Memory", func(s S) { s.Resources.Memory = 0.001 }},
		{"Resources.Memory", func(s S) { s.Resources.Memory = math.MaxFloat64 }},
		{"Resources.Disk", func(s S) { s.Resources.Disk = -0.5 }},
		{"Resources.GPU", func(s S) { s.Resources.GPU = -1 }},
		{"Resources.Processes", func(s S) { s.Resources.Processes = 3 }},
		{"Resources.DiskBandwidth", func(s S) { s.Resources.DiskBandwidth = 0.5 }},
		{"Network.Allow[0]", func(s S) { s.Network.Allow = []netip.Prefix{{}} }},
		{"Network.Allow[0]", func(s S) { s.Network.Allow = []netip.Prefix{netip.MustParsePrefix("203.0.113.5/24")} }},
		{"Network.AllowDomains[0]", func(s S) { s.Network.AllowDomains = []string{"https://example.com"} }},
		{"Network.AllowDomains[0]", func(s S) { s.Network.AllowDomains = []string{"*"} }},
		{"Network.AllowDomains[0]", func(s S) { s.Network.AllowDomains = []string{"a.*.example"} }},
		{"Network.Block", func(s S) { s.Network.Block, s.Network.AllowDomains = true, []string{"example.com"} }},
		{"Volumes[0].Volume", vol(daytona.VolumeMount{MountPath: "/data"})},
		{"Volumes[0].MountPath", vol(daytona.VolumeMount{Volume: "v"})},
		{"Volumes[0].MountPath", vol(daytona.VolumeMount{Volume: "v", MountPath: "/"})},
		{"Volumes[0].MountPath", vol(daytona.VolumeMount{Volume: "v", MountPath: "data"})},
		{"Volumes[0].MountPath", vol(daytona.VolumeMount{Volume: "v", MountPath: "/data/../etc"})},
		{"Volumes[0].MountPath", vol(daytona.VolumeMount{Volume: "v", MountPath: "/proc/x"})},
		{"Volumes[0].MountPath", vol(daytona.VolumeMount{Volume: "v", MountPath: "/etc"})},
		{"Volumes[0].Subpath", vol(daytona.VolumeMount{Volume: "v", MountPath: "/data", Subpath: "../other"})},
		{"Volumes[0].Subpath", vol(daytona.VolumeMount{Volume: "v", MountPath: "/data", Subpath: "/abs"})},
		{"Volumes[1].MountPath", func(s S) {
			s.Volumes = []daytona.VolumeMount{{Volume: "v", MountPath: "/data"}, {Volume: "w", MountPath: "/data"}}
		}},
		{"TTL", func(s S) { s.TTL = time.Millisecond }},
		{"AutoStop", func(s S) { s.AutoStop = -time.Second }},
		{"AutoArchive", func(s S) { s.AutoArchive = 1 }},
		{"AutoDelete", func(s S) { s.AutoDelete = 999 * time.Millisecond }},
	}
}

func checkBadInput(c *env) {
	client := c.open()
	for i, bad := range badSpecs() {
		what := fmt.Sprintf("create with bad %s (entry %d)", bad.field, i)
		sb, err := client.Create(c.ctx, c.spec(bad.set))
		if err == nil {
			c.Errorf("%s was accepted", what)
			c.discard(sb)
			continue
		}
		c.wantKind(what, err, daytona.KindInvalid)
		if e, ok := errors.AsType[*daytona.Error](err); !ok {
			c.Errorf("%s: a %T, want an *Error", what, err)
		} else if e.Field != bad.field || e.Message == "" || e.Op == "" {
			c.Errorf("%s: Op %q, Field %q, Message %q; want all set and Field %s", what, e.Op, e.Field, e.Message, bad.field)
		}
	}
	c.nothingLeft("after refused creates")
}

func checkMissingImage(c *env) {
	client := c.open()
	dir := c.TempDir()
	// Only forms that need no network. A registry reference that cannot be
	// reached is another error.
	for _, img := range []string{"dir:" + dir + "/none", "tar:" + dir + "/none.tar", "oci:" + dir + "/none:latest", "docker-archive:" + dir + "/none.tar"} {
		_, err := client.Create(c.ctx, c.spec(func(s *daytona.Spec) { s.Image = img }))
		if k := daytona.KindOf(err); k != daytona.KindNotFound && k != daytona.KindUnsupported {
			c.Errorf("create from missing image %s: %v (kind %q), want not found", img, err, k)
		}
	}
	c.nothingLeft("after creates from missing images")
}

func checkMissingSnapshot(c *env) {
	client := c.open()
	_, err := client.Create(c.ctx, c.spec(func(s *daytona.Spec) { s.Image, s.Snapshot = "", "no-such-snapshot" }))
	want := daytona.KindUnsupported
	if has[daytona.Snapshotter](c.backend) {
		want = daytona.KindNotFound
	}
	c.wantKind("create from a missing snapshot", err, want)
	c.nothingLeft("after a create from a missing snapshot")
}

// checkRefuseOrEnforce asks for each limit and policy: it must be echoed in
// Info as enforced, or refused by name.
func checkRefuseOrEnforce(c *env) {
	client := c.open()
	type S = *daytona.Spec
	for _, x := range []struct {
		field string
		needs Capability // if the harness has it, refusing is a failure
		set   func(S)
		ok    func(daytona.Info) bool
	}{
		{"Resources.CPU", CPU, func(s S) { s.Resources.CPU = 1 }, func(i daytona.Info) bool { return i.Resources.CPU == 1 }},
		{"Resources.Memory", Memory, func(s S) { s.Resources.Memory = c.h.amount(0.5) }, func(i daytona.Info) bool { return i.Resources.Memory == c.h.amount(0.5) }},
		{"Resources.Disk", Disk, func(s S) { s.Resources.Disk = c.h.amount(0.125) }, func(i daytona.Info) bool { return i.Resources.Disk == c.h.amount(0.125) }},
		{"Resources.Processes", Processes, func(s S) { s.Resources.Processes = 64 }, func(i daytona.Info) bool { return i.Resources.Processes == 64 }},
		{"Resources.GPU", "", func(s S) { s.Resources.GPU = 1 }, func(i daytona.Info) bool { return i.Resources.GPU == 1 }},
		{"Resources.DiskBandwidth", "", func(s S) { s.Resources.DiskBandwidth = 10 }, func(i daytona.Info) bool { return i.Resources.DiskBandwidth == 10 }},
		{"Network.Block", Network, func(s S) { s.Network.Block = true }, func(i daytona.Info) bool { return i.Network.Block }},
		{"Network.Allow", "", func(s S) { s.Network.Allow = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} }, func(i daytona.Info) bool { return len(i.Network.Allow) == 1 }},
		{"Network.Allow", "", func(s S) { s.Network.Allow = []netip.Prefix{} }, func(i daytona.Info) bool { return i.Network.Block || i.Network.Allow != nil }},
		{"Network.AllowDomains", "", func(s S) { s.Network.AllowDomains = []string{"example.com"} }, func(i daytona.Info) bool { return len(i.Network.AllowDomains) == 1 }},
		{"Network.AllowDomains", "", func(s S) { s.Network.AllowDomains = []string{} }, func(i daytona.Info) bool { return i.Network.Block || i.Network.AllowDomains != nil }},
		{"Persistent", Persistence, func(s S) { s.Persistent = true }, func(i daytona.Info) bool { return i.Persistent }},
		{"TTL", Timers, func(s S) { s.TTL = time.Hour }, func(i daytona.Info) bool { return i.TTL == time.Hour }},
		{"AutoStop", Timers, func(s S) { s.AutoStop = time.Hour }, func(i daytona.Info) bool { return i.AutoStop == time.Hour }},
		{"AutoDelete", Timers, func(s S) { s.AutoDelete = time.Hour }, func(i daytona.Info) bool { return i.AutoDelete == time.Hour }},
		{"AutoArchive", "", func(s S) { s.AutoArchive = time.Hour }, func(i daytona.Info) bool { return i.AutoArchive == time.Hour }},
		{"User", Users, func(s S) { s.User = "0" }, func(i daytona.Info) bool { return i.User == "0" }},
		{"Entrypoint", Entrypoint, func(s S) { s.Entrypoint = []string{"sleep", "60"} }, func(i daytona.Info) bool { return len(i.Entrypoint) == 2 }},
		{"Volumes", "", func(s S) {
			s.Volumes = []daytona.VolumeMount{{Volume: "no-such-volume", MountPath: "/data"}}
		}, func(daytona.Info) bool { return false }},
	} {
		sb, err := client.Create(c.ctx, c.spec(x.set))
		if err != nil {
			if x.field == "Volumes" && has[daytona.VolumeManager](c.backend) {
				c.wantKind("create with a missing volume", err, daytona.KindNotFound)
				continue
			}
			if !errors.Is(err, errors.ErrUnsupported) {
				c.Errorf("create with %s: %v; want success or an error that is errors.ErrUnsupported", x.field, err)
				continue
			}
			e, ok := errors.AsType[*daytona.Error](err)
			if !ok || !strings.HasPrefix(e.Field, x.field) {
				c.Errorf("create with %s: the refusal does not name the field: %v", x.field, err)
			}
			if x.needs != "" && c.has(x.needs) {
				c.Errorf("create with %s is refused (%v), but the harness does not declare that it lacks %s", x.field, err, x.needs)
			}
			continue
		}
		if !x.ok(sb.Info()) {
			c.Errorf("create with %s was accepted and then ignored: Info is %+v", x.field, sb.Info())
		}
		c.try("delete", sb.Delete(c.ctx))
	}
	c.nothingLeft("after creates with every field")
}

// zeros yields n zero bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func checkDiskFull(c *env) {
	disk := c.h.amount(0.0625)
	size := fmt.Sprintf("%v MiB", disk*1024)
	sb := c.create(func(s *daytona.Spec) { s.Resources.Disk = disk })
	neighbour := c.create()
	big := &io.LimitedReader{R: zeroReader{}, N: 10 << 30}
	_, err := sb.FileSystem().Upload(c.ctx, "big", big)
	c.wantKind("upload of 10 GiB into a disk of "+size, err, daytona.KindNoSpace)
	if big.N < 10<<30-int64((disk+1)*daytona.GiB) {
		c.Errorf("%d MiB were read for a disk of %s: the upload did not end when the disk was full", (10<<30-big.N)>>20, size)
	}
	if _, err := sb.FileSystem().Stat(c.ctx, "big"); err == nil {
		c.Log("a part of the failed upload is visible")
		c.try("remove", sb.FileSystem().Remove(c.ctx, "big"))
	}
	c.try("write after a failed upload", sb.FileSystem().WriteFile(c.ctx, "small", []byte("fits"), 0))
	equal(c, "a command after a failed upload", c.sh(sb, "cat small"), "fits")
	if c.has(Shell) {
		// Deleted but open files count as well.
		r, err := sb.Process().Exec(c.ctx, fmt.Sprintf(`exec 3>hog; rm hog; head -c %.0f /dev/zero >&3`, 3*disk*daytona.GiB), nil)
		c.try("exec", err)
		if r.ExitCode == 0 {
			c.Errorf("what was written to a deleted file that is open went three times beyond the disk limit of %s", size)
		}
	}
	equal(c, "the neighbour", c.sh(neighbour, "echo fine"), "fine")
}
