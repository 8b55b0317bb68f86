package organization_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/organization"
	"github.com/daytona-go/daytona/server/outbound"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// rest stands for the other features. Mails are verified once verified is set.
type rest struct{ verified atomic.Bool }

func (r *rest) Info(_ context.Context, id string) (email, name string, verified bool, err error) {
	return id + "@example.com", id, r.verified.Load(), nil
}

func (*rest) DeleteExceeding(context.Context, string, string, []identity.Permission) error {
	return nil
}
func (*rest) DeleteForMember(context.Context, string, string) error { return nil }
func (*rest) Shared(context.Context, string) (bool, error)          { return true, nil }
func (*rest) Prepare(context.Context, string, string) error         { return nil }

// server is one of several of a database.
func server(t *testing.T, db *store.DB, r *rest, change ...func(*organization.Config)) *organization.Service {
	t.Helper()
	box, err := seal.New("a key of some bytes")
	if err != nil {
		t.Fatal(err)
	}
	c := organization.Config{Users: r, Keys: r, Regions: r, Quotas: r, Box: box, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&c)
	}
	s := organization.New(db, c)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s
}

// soon asks until it is so, for at most the second in which a change has to be
// known everywhere.
func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// What one server takes from a member, another one that remembers it knows
// within a second.
func TestTwoServers(t *testing.T) {
	url := storetest.Postgres(t)
	r := &rest{}
	r.verified.Store(true)
	one, two := server(t, storetest.Open(t, url), r), server(t, storetest.Open(t, url), r)
	ctx := t.Context()
	o, err := one.Create(ctx, organization.NewOrganization{Name: "x", UserID: "alice", DefaultRegionID: "us"})
	if err != nil {
		t.Fatal(err)
	}
	i, err := one.Invite(ctx, o.ID, organization.NewInvitation{Email: "bob@example.com", Role: identity.Member, RoleIDs: []string{organization.GlobalRoles()[1].ID}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := one.Accept(ctx, "bob", i.ID); err != nil {
		t.Fatal(err)
	}
	permissions := func() []identity.Permission {
		_, p, err := two.Member(ctx, o.ID, "bob")
		if err != nil && !errors.Is(err, daytona.ErrNotFound) {
			t.Fatal(err)
		}
		return p
	}
	soon(t, "bob is no member", func() bool { return slices.Contains(permissions(), identity.DeleteSandboxes) })
	if _, err := one.SetAccess(ctx, o.ID, "bob", identity.Member, []string{organization.GlobalRoles()[0].ID}); err != nil {
		t.Fatal(err)
	}
	soon(t, "bob still has a permission", func() bool { return !slices.Contains(permissions(), identity.DeleteSandboxes) })
	if err := one.Remove(ctx, o.ID, "bob"); err != nil {
		t.Fatal(err)
	}
	soon(t, "bob is still a member", func() bool { return permissions() == nil })
	if err := two.Active(ctx, o.ID); err != nil {
		t.Fatal(err)
	}
	if err := one.Suspend(ctx, o.ID, organization.Suspension{Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	soon(t, "the organization is still active", func() bool { return errors.Is(two.Active(ctx, o.ID), daytona.ErrForbidden) })
}

// A suspension that was for an address which nobody had verified ends when it
// is, and no other does.
func TestVerified(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		r := &rest{}
		s := server(t, db, r)
		ctx := t.Context()
		id, err := s.CreatePersonal(ctx, "dave", "us")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Active(ctx, id); !errors.Is(err, daytona.ErrForbidden) {
			t.Fatal(err)
		}
		r.verified.Store(true)
		if err := s.Active(ctx, id); err != nil {
			t.Fatal(err)
		}
		if o, err := s.Get(ctx, id); err != nil || o.Suspended {
			t.Errorf("%+v %v", o, err)
		}
		if err := s.Suspend(ctx, id, organization.Suspension{Reason: "abuse"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Active(ctx, id); !errors.Is(err, daytona.ErrForbidden) {
			t.Error(err)
		}
	})
}

// TestDomains: an organization that says a domain is its own is believed once the
// domain says so too, and not before: whoever came first could otherwise take the
// logins of everybody there.
func TestDomains(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		guard, err := outbound.New(outbound.Config{})
		if err != nil {
			t.Fatal(err)
		}
		r := &rest{}
		r.verified.Store(true)
		records := map[string][]string{}
		s := server(t, db, r, func(c *organization.Config) {
			c.Outbound = guard
			c.LookupTXT = func(_ context.Context, name string) ([]string, error) {
				if records[name] == nil {
					return nil, &net.DNSError{Name: name, IsNotFound: true}
				}
				return records[name], nil
			}
		})
		provider := func(user string) *organization.Provider {
			o, err := s.Create(t.Context(), organization.NewOrganization{Name: user, UserID: user, DefaultRegionID: "us"})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.SetSSO(t.Context(), o.ID, true); err != nil {
				t.Fatal(err)
			}
			p, err := s.CreateProvider(t.Context(), o.ID, organization.ProviderChange{Name: new(user), IssuerURL: new("https://" + user + ".example"),
				ClientID: new("c"), ClientSecret: new("s"), EmailDomains: []string{"corp.example"}})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		mallory, corp := provider("mallory"), provider("corp")
		for _, c := range []struct {
			what    string
			records []string
			want    *organization.Provider
		}{
			{"nothing", nil, nil},
			{"something else", []string{"v=spf1 -all", "organization=", "organization=" + corp.OrganizationID + "x", corp.OrganizationID}, nil},
			{"the second", []string{"v=spf1 -all", "organization=" + corp.OrganizationID}, corp},
			{"both", []string{"organization=" + corp.OrganizationID, "organization=" + mallory.OrganizationID}, mallory},
		} {
			records["_daytona.corp.example"] = c.records
			got, err := s.ProviderFor(t.Context(), "ada@CORP.example")
			if c.want == nil && !errors.Is(err, daytona.ErrNotFound) || c.want != nil && (err != nil || got.ID != c.want.ID) {
				t.Errorf("%s: %+v, %v", c.what, got, err)
			}
		}
	})
}

func TestGlobalRoles(t *testing.T) {
	want := [][]identity.Permission{
		{"write:sandboxes"}, {"write:sandboxes", "delete:sandboxes"}, {"write:snapshots", "delete:snapshots"}, {"write:registries", "delete:registries"},
		identity.Permissions(), {"read:volumes", "write:volumes", "delete:volumes"}, {"read:audit_logs"},
		{"write:regions", "delete:regions", "read:runners", "write:runners", "delete:runners"},
	}
	for i, r := range organization.GlobalRoles() {
		if !slices.Equal(r.Permissions, want[i]) || !r.Global() || r.ID != "00000000-0000-0000-0000-00000000000"+string(rune('1'+i)) {
			t.Errorf("%+v", r)
		}
	}
}
