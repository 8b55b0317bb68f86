package backendtest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

// limited sets the limits that the harness has.
func (c *env) limited(s *daytona.Spec) {
	if c.has(Memory) {
		s.Resources.Memory = c.h.amount(0.125)
	}
	if c.has(Processes) {
		s.Resources.Processes = 128
	}
	if c.has(Disk) {
		s.Resources.Disk = c.h.amount(0.25)
	}
	if c.has(CPU) {
		s.Resources.CPU = c.h.amount(0.5)
	}
}

// neighbourWorks demands that another sandbox stays usable while do runs, and
// logs how much slower it got.
func (c *env) neighbourWorks(neighbour daytona.Sandbox, what string, do func()) {
	c.Helper()
	measure := func(until <-chan struct{}, n int) []time.Duration {
		var times []time.Duration
		for range n {
			begin := time.Now()
			err := c.within(10*time.Second, func() error { return neighbour.Process().Command(c.ctx, "true").Run() })
			if err != nil {
				c.Errorf("%s: a command of the neighbour: %v", what, err)
				return times
			}
			times = append(times, time.Since(begin))
			select {
			case <-until:
				return times
			default:
			}
		}
		return times
	}
	before := measure(nil, 20)
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	during := measure(done, 5000)
	<-done
	if len(before) == 0 || len(during) == 0 {
		return
	}
	slices.Sort(before)
	slices.Sort(during)
	p99 := during[len(during)*99/100]
	c.Logf("%s: the neighbour's exec p50 %v → %v, p99 %v → %v over %d", what, before[len(before)/2], during[len(during)/2], before[len(before)-1], p99, len(during))
	if limit := c.slow(5 * time.Second); p99 > limit {
		c.Errorf("%s: the neighbour's exec takes %v at p99, want less than %v", what, p99, limit)
	}
}

func checkResourceAttacks(c *env) {
	neighbour := c.victim()
	mib := int64(c.h.amount(0.125) * 1024) // the limit of memory
	much := fmt.Sprint(4 * mib)
	// survives demands that the attacked sandbox answers again.
	survives := func(c *env, sb daytona.Sandbox) {
		c.Helper()
		c.eventually(15*time.Second, "the attacked sandbox works again", func() error {
			r, err := sb.Process().Exec(c.ctx, "echo alive", nil)
			if err == nil && r.Output != "alive\n" {
				err = fmt.Errorf("%+v", r)
			}
			return err
		})
	}
	gone := func(c *env, sb daytona.Sandbox) {
		c.Helper()
		begin := time.Now()
		c.try("delete the attacked sandbox", sb.Delete(c.ctx))
		if d := time.Since(begin); d > c.slow(20*time.Second) {
			c.Errorf("deleting the attacked sandbox took %v", d)
		}
	}
	c.sub("ForkBomb", []Capability{Processes}, func(c *env) {
		sb := c.victim(c.limited)
		c.neighbourWorks(neighbour, "fork bomb", func() {
			run, line := c.begin(sb, "forkbomb", "4000", "2")
			c.Logf("the bomb: %s", line)
			r, err := c.end(run)
			if err == nil && r.N >= 128 {
				c.Errorf("%d processes were started with a limit of 128", r.N)
			}
		})
		survives(c, sb)
		gone(c, sb)
	})
	c.sub("ForkBombShell", []Capability{Processes, Shell}, func(c *env) {
		sb := c.victim(c.limited)
		c.neighbourWorks(neighbour, "shell fork bomb", func() {
			_, err := sb.Process().Exec(c.ctx, "b() { b | b & }; b; sleep 1000", &daytona.ExecOptions{Timeout: 3 * time.Second})
			c.Logf("the bomb: %v", err)
		})
		gone(c, sb)
	})
	c.sub("Memory", []Capability{Memory}, func(c *env) {
		sb := c.victim(c.limited)
		c.neighbourWorks(neighbour, "memory hog", func() {
			if r, err := c.tryAttack(sb, "memory", much); err == nil && r.N >= mib {
				c.Errorf("%d MiB were used with a limit of %d MiB", r.N, mib)
			} else {
				c.Logf("the hog: %v", err)
			}
		})
		survives(c, sb)
		gone(c, sb)
	})
	c.sub("Tmpfs", []Capability{Memory}, func(c *env) {
		sb := c.victim(c.limited)
		c.neighbourWorks(neighbour, "tmpfs fill", func() {
			r, err := c.tryAttack(sb, "fill", much, "/dev/shm")
			if err != nil {
				c.Logf("the filler: %v", err)
				return
			}
			c.noneWorked(r)
		})
		survives(c, sb)
		gone(c, sb)
	})
	c.sub("Inodes", nil, func(c *env) {
		sb := c.victim(c.limited)
		c.neighbourWorks(neighbour, "inode fill", func() {
			r, err := c.tryAttack(sb, "inodes", c.inWorkDir(sb, "many"), "100000")
			c.Logf("%d files, %v", r.N, err)
		})
		survives(c, sb)
		gone(c, sb)
	})
	c.sub("OpenFiles", nil, func(c *env) {
		sb := c.victim(c.limited)
		c.neighbourWorks(neighbour, "open files", func() {
			run, line := c.begin(sb, "openfiles", "2")
			c.Logf("open files: %s", line)
			if r, err := c.end(run); err == nil && r.N >= 1<<20 {
				c.Errorf("%d files were opened: there is no limit", r.N)
			}
		})
		survives(c, sb)
		gone(c, sb)
	})
	c.sub("Inotify", []Capability{UserLimits}, func(c *env) {
		sb := c.victim(c.limited)
		run, line := c.begin(sb, "inotify", "100000", "3")
		c.Logf("inotify instances: %s", line)
		if r := c.attack(neighbour, "inotify", "1"); r.N != 1 {
			c.Errorf("the neighbour gets no inotify instance while another sandbox holds its fill: %v", r.Attempts)
		}
		_, _ = c.end(run)
		survives(c, sb)
		gone(c, sb)
	})
	c.sub("Keyring", nil, func(c *env) {
		c.noneWorked(c.attack(c.victim(c.limited), "keyring"))
	})
	c.sub("CPU", nil, func(c *env) {
		sb := c.victim(c.limited)
		c.neighbourWorks(neighbour, "busy loops", func() { _, _ = c.tryAttack(sb, "spin", "16", "3") })
		survives(c, sb)
	})
	c.sub("LogFlood", []Capability{Sessions}, func(c *env) {
		sb := c.victim(c.limited)
		s, err := sb.Process().CreateSession(c.ctx, "flood")
		c.try("session", err)
		c.neighbourWorks(neighbour, "log flood", func() {
			_, err := s.Start(c.ctx, attackerPath+" flood 2000", nil)
			c.try("start", err)
			time.Sleep(4 * time.Second) // the duration of the attack
		})
		c.try("delete the session", s.Delete(c.ctx))
		survives(c, sb)
		gone(c, sb)
	})
	c.sub("Parallel", []Capability{Processes, Memory}, func(c *env) {
		// A process that dies at its limits must not take the sandbox along
		// over and over again.
		sb := c.victim(c.limited)
		for range 5 {
			_, _ = c.tryAttack(sb, "memory", much)
			_, _ = c.tryAttack(sb, "forkbomb", "4000", "0")
		}
		survives(c, sb)
	})
	equal(c, "the neighbour at the end", c.sh(neighbour, "echo fine"), "fine")
}

func checkDiskQuota(c *env) {
	disk := c.h.amount(0.0625)
	sb := c.victim(func(s *daytona.Spec) { s.Resources.Disk = disk })
	for _, dir := range []string{sb.Info().WorkDir, "/var/tmp", "/tmp"} {
		r, err := c.tryAttack(sb, "fill", fmt.Sprint(8*disk*1024), dir)
		if err != nil {
			c.Logf("fill %s: %v", dir, err)
			continue
		}
		c.noneWorked(r)
	}
	r, err := c.tryAttack(sb, "inodes", c.inWorkDir(sb, "many"), "3000000")
	if err == nil && r.N >= 3_000_000 {
		c.Errorf("three million files fit on a disk of %v MiB", disk*1024)
	}
	c.try("remove the files", sb.FileSystem().RemoveAll(c.ctx, "many"))
	c.try("write after the disk was full", sb.FileSystem().WriteFile(c.ctx, "after", []byte("ok"), 0))
}

func checkZombies(c *env) {
	sb := c.victim(func(s *daytona.Spec) {
		if c.has(Processes) {
			s.Resources.Processes = 512
		}
	})
	r := c.attack(sb, "zombies", "10000")
	if r.N < 10_000 {
		c.Errorf("only %d of 10000 orphans could be made: %v", r.N, r.Attempts)
	}
	for _, a := range r.Attempts {
		if strings.HasPrefix(a.Name, "zombies") && a.Worked {
			c.Errorf("%s zombies are left of 10000 orphans", a.Detail)
		}
	}
	c.eventually(10*time.Second, "the sandbox works after 10000 orphans", func() error {
		_, err := sb.Process().Exec(c.ctx, "true", nil)
		return err
	})
}
