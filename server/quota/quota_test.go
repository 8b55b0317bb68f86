package quota_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/quota"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// regions enforces quotas in those that it names.
type regions map[string]bool

func (r regions) Enforced(_ context.Context, id string) (bool, error) { return r[id], nil }

func service(t *testing.T, db *store.DB) *quota.Service {
	t.Helper()
	s := quota.New(db, quota.Config{Regions: regions{"strict": true}})
	if err := s.Prepare(t.Context(), "a", "strict"); err != nil {
		t.Fatal(err)
	}
	return s
}

func claim(id string, cpu, memory, disk float64) quota.Claim {
	return quota.Claim{SandboxID: id, OrganizationID: "a", RegionID: "strict", CPU: cpu, Memory: memory, Disk: disk}
}

// says checks that an error is a client's mistake and begins as clients know it.
func says(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if !errors.Is(err, daytona.ErrInvalid) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, not %q", err, want)
	}
}

// However many come at once, no limit is exceeded, and none is left unused.
func TestConcurrentReserve(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := service(t, db)
		var wg sync.WaitGroup
		var granted, refused atomic.Int32
		for i := range 50 {
			wg.Go(func() {
				err := s.Reserve(t.Context(), claim(fmt.Sprint(i), 1, 1, 1))
				switch {
				case err == nil:
					granted.Add(1)
				case errors.Is(err, daytona.ErrInvalid):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if granted.Load() != 10 || refused.Load() != 40 {
			t.Errorf("%d granted, %d refused, of 10 CPUs", granted.Load(), refused.Load())
		}
		used, err := s.Used(t.Context(), "a")
		if err != nil || len(used) != 1 || used[0].CPU != 10 || used[0].Memory != 10 || used[0].Disk != 10 {
			t.Errorf("%+v %v", used, err)
		}
		if err := s.SetLimits(t.Context(), "a", func(l *quota.Limits) { l.Secrets = 7 }); err != nil {
			t.Fatal(err)
		}
		granted.Store(0)
		for i := range 50 {
			wg.Go(func() {
				if s.ReserveSecret(t.Context(), "a", fmt.Sprint(i)) == nil {
					granted.Add(1)
				}
			})
		}
		wg.Wait()
		if granted.Load() != 7 {
			t.Errorf("%d secrets of 7", granted.Load())
		}
		says(t, s.ReserveSecret(t.Context(), "a", "new"), "Secret quota exceeded. Maximum allowed: 7")
	})
}

func TestReserve(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := service(t, db)
		says(t, s.Reserve(ctx, claim("1", 5, 1, 1)), "CPU request 5 exceeds maximum allowed per sandbox (4).\n")
		says(t, s.Reserve(ctx, claim("1", 1, 9, 1)), "Memory request 9GB exceeds maximum allowed per sandbox (8GB).\n")
		says(t, s.Reserve(ctx, claim("1", 1, 1, 11)), "Disk request 11GB exceeds maximum allowed per sandbox (10GB).\n")
		says(t, s.Reserve(ctx, claim("1", 4, 4, 10)), "")
		says(t, s.Reserve(ctx, claim("2", 4, 1, 10)), "")
		says(t, s.Reserve(ctx, claim("3", 3, 1, 1)), "Total CPU limit exceeded. Maximum allowed: 10.")
		says(t, s.Reserve(ctx, claim("3", 1, 6, 1)), "Total memory limit exceeded. Maximum allowed: 10GiB.")
		says(t, s.Reserve(ctx, claim("3", 1, 1, 10)), "")
		says(t, s.Reserve(ctx, claim("4", 0, 0, 1)), "Total disk limit exceeded. Maximum allowed: 30GiB.")
		gpu := claim("4", 0, 0, 0)
		gpu.GPU = 1
		says(t, s.Reserve(ctx, gpu), "Total GPU limit exceeded. Maximum allowed: 0.")
		// Again, the same is not twice; what grows is asked for, what shrinks isn't.
		says(t, s.Reserve(ctx, claim("1", 4, 4, 10)), "")
		says(t, s.Reserve(ctx, claim("3", 2, 1, 10)), "")
		says(t, s.Reserve(ctx, claim("3", 3, 1, 10)), "Total CPU limit exceeded. Maximum allowed: 10.")
		if err := s.UpdateRegionQuota(ctx, "a", "strict", "container", func(r *quota.Region) { r.CPU, r.Disk = 1, 1 }); err != nil {
			t.Fatal(err)
		}
		says(t, s.Reserve(ctx, claim("1", 1, 4, 10)), "")
		// A stopped sandbox has its disk only; whether it may is not asked.
		if err := s.Adjust(ctx, claim("2", 0, 0, 10)); err != nil {
			t.Fatal(err)
		}
		if used, err := s.Used(ctx, "a"); err != nil || len(used) != 1 || used[0].CPU != 3 || used[0].Memory != 5 || used[0].Disk != 30 {
			t.Errorf("%+v %v", used, err)
		}
		for _, id := range []string{"1", "2", "3", "none"} {
			if err := s.Release(ctx, id); err != nil {
				t.Error(err)
			}
		}
		if used, err := s.Used(ctx, "a"); err != nil || len(used) != 0 {
			t.Errorf("%+v %v", used, err)
		}
		// Where totals don't count, the size of a sandbox does.
		free := claim("5", 4, 8, 10)
		free.RegionID = "free"
		for i := range 5 {
			free.SandboxID = fmt.Sprint("free", i)
			says(t, s.Reserve(ctx, free), "")
		}
		free.SandboxID, free.CPU = "large", 5
		says(t, s.Reserve(ctx, free), "CPU request 5 exceeds maximum allowed per sandbox (4).")
		// A reservation is its transaction's.
		wrong := errors.New("wrong")
		if err := db.Tx(ctx, func(ctx context.Context) error {
			if err := s.Reserve(ctx, claim("tx", 1, 1, 1)); err != nil {
				return err
			}
			return wrong
		}); err != wrong {
			t.Fatal(err)
		}
		if used, _ := s.Used(ctx, "a"); len(used) != 1 || used[0].RegionID != "free" {
			t.Errorf("%+v", used)
		}
		// Without a quota there is nothing where totals count.
		other := claim("6", 1, 1, 1)
		other.OrganizationID = "b"
		if err := s.Reserve(ctx, other); !errors.Is(err, daytona.ErrForbidden) {
			t.Error(err)
		}
		other.OrganizationID, other.Class = "a", "windows"
		if err := s.Reserve(ctx, other); !errors.Is(err, daytona.ErrForbidden) {
			t.Error(err)
		}
	})
}

func TestRegionLimits(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := service(t, db)
		if err := s.CreateRegionQuota(ctx, &quota.Region{OrganizationID: "a", RegionID: "strict", Class: "container"}); !errors.Is(err, daytona.ErrConflict) {
			t.Error(err)
		}
		if err := s.UpdateRegionQuota(ctx, "a", "strict", "container", func(r *quota.Region) {
			r.CPU, r.Memory, r.Disk, r.GPU = 1000, 1000, 1000, 4
			r.MaxCPU, r.MaxDiskLasting, r.GPUTypes, r.MaxMemoryPerGPU = new(6.0), new(0.0), []string{}, new(50.0)
			r.MaxLifespan = new(90.0)
		}); err != nil {
			t.Fatal(err)
		}
		says(t, s.Reserve(ctx, claim("1", 7, 1, 0)), "CPU request 7 exceeds maximum allowed per sandbox (6).")
		says(t, s.Reserve(ctx, claim("1", 6, 1, 1)), "Sandboxes in this region must be ephemeral")
		c := claim("1", 6, 1, 1)
		c.Ephemeral = true
		says(t, s.Reserve(ctx, c), "")
		g := quota.Claim{SandboxID: "g", OrganizationID: "a", RegionID: "strict", CPU: 16, Memory: 100, Disk: 512, GPU: 2, GPUType: "H100", Ephemeral: true}
		says(t, s.Reserve(ctx, g), "GPU type H100 is not available")
		if err := s.UpdateRegionQuota(ctx, "a", "strict", "container", func(r *quota.Region) { r.GPUTypes = nil }); err != nil {
			t.Fatal(err)
		}
		says(t, s.Reserve(ctx, g), "")
		g.Memory = 101
		says(t, s.Reserve(ctx, g), "Memory request 101GB exceeds maximum allowed per sandbox (100GB).")
		g.Memory, g.GPU = 1, 5
		says(t, s.Reserve(ctx, g), "Total GPU limit exceeded. Maximum allowed: 4.")
		if d, err := s.Lifespan(ctx, "a", "strict", "container"); d != 90*time.Minute || err != nil {
			t.Error(d, err)
		}
		if d, err := s.Lifespan(ctx, "b", "strict", "container"); d != 0 || err != nil {
			t.Error(d, err)
		}
		for _, bad := range []*quota.Region{{Class: "cloud"}, {Class: "container", CPU: -1}, {Class: "container", MaxDisk: new(1e10)}} {
			bad.OrganizationID, bad.RegionID = "a", "x"
			if err := s.CreateRegionQuota(ctx, bad); !errors.Is(err, daytona.ErrInvalid) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		if err := s.DeleteRegionQuota(ctx, "b", "strict", "container"); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if ids, err := s.Regions(ctx, "a"); len(ids) != 1 || ids[0] != "strict" || err != nil {
			t.Error(ids, err)
		}
		if err := s.DeleteAll(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		if ids, err := s.Regions(ctx, "a"); len(ids) != 0 || err != nil {
			t.Error(ids, err)
		}
	})
}
