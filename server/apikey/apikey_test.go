package apikey_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/apikey"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

func owner(user string) *identity.Principal {
	return &identity.Principal{Kind: identity.JWT, UserID: user, OrganizationID: "org", Role: identity.Owner}
}

func member(user string, permissions ...identity.Permission) *identity.Principal {
	return &identity.Principal{Kind: identity.JWT, UserID: user, OrganizationID: "org", Role: identity.Member, Permissions: permissions}
}

func run(t *testing.T, s *apikey.Service) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func make1(t *testing.T, s *apikey.Service, p *identity.Principal, name string, permissions ...identity.Permission) string {
	t.Helper()
	_, value, err := s.Create(t.Context(), p, apikey.NewKey{Name: name, Permissions: permissions})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// A key is shown once; the database has nothing that it could be made of.
func TestHashed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := apikey.New(db, nil)
		k, value, err := s.Create(ctx, owner("u"), apikey.NewKey{Name: "ci", Permissions: []identity.Permission{identity.DeleteSandboxes, identity.WriteSandboxes, identity.WriteSandboxes}})
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`^dtn_[0-9a-f]{64}$`).MatchString(value) {
			t.Errorf("%q", value)
		}
		var rows []map[string]any
		if err := db.All(ctx).NewRaw("SELECT * FROM api_keys").Scan(ctx, &rows); err != nil || len(rows) != 1 {
			t.Fatal(rows, err)
		}
		sum := sha256.Sum256([]byte(value))
		text := fmt.Sprint(rows)
		if strings.Contains(text, value[4:20]) || !strings.Contains(text, hex.EncodeToString(sum[:])) {
			t.Error(text)
		}
		if k.Masked() != "dtn"+strings.Repeat("*", 20)+value[65:] {
			t.Error(k.Masked())
		}
		if !slices.Equal(k.Permissions, []identity.Permission{identity.WriteSandboxes, identity.DeleteSandboxes}) {
			t.Error(k.Permissions)
		}
		p, err := s.Validate(ctx, value)
		if err != nil || p.UserID != "u" || p.OrganizationID != "org" || p.Kind != identity.Key || p.KeyName != "ci" || !p.May(identity.WriteSandboxes) || p.May(identity.WriteVolumes) {
			t.Errorf("%+v %v", p, err)
		}
		current, err := s.Current(ctx, p)
		if err != nil || current.ID != k.ID {
			t.Error(current, err)
		}
		for _, wrong := range []string{"", value[:67], value + "0", strings.ToUpper(value), strings.Repeat("x", 1000), hex.EncodeToString(sum[:])} {
			if _, err := s.Validate(ctx, wrong); !errors.Is(err, daytona.ErrUnauthorized) {
				t.Errorf("%q: %v", wrong, err)
			}
		}
	})
}

func TestCreate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := apikey.New(db, nil)
		make1(t, s, member("u"), "taken")
		make1(t, s, member("other"), "taken") // a name is a user's own
		past := time.Now().Add(-time.Second)
		for _, c := range []struct {
			who  *identity.Principal
			key  apikey.NewKey
			kind error
			says string
		}{
			{member("u"), apikey.NewKey{Name: "taken"}, daytona.ErrConflict, "API key with this name already exists"},
			{member("u"), apikey.NewKey{Name: " "}, daytona.ErrInvalid, "name"},
			{member("u"), apikey.NewKey{Name: strings.Repeat("a", 256)}, daytona.ErrInvalid, "255"},
			{member("u"), apikey.NewKey{Name: "<b>x</b>"}, daytona.ErrInvalid, "name must not contain HTML tags, URLs, or control characters"},
			{member("u"), apikey.NewKey{Name: "see https://x"}, daytona.ErrInvalid, "name must not contain HTML tags, URLs, or control characters"},
			{member("u"), apikey.NewKey{Name: "WWW.x"}, daytona.ErrInvalid, "name must not contain HTML tags, URLs, or control characters"},
			{member("u"), apikey.NewKey{Name: "a\nb"}, daytona.ErrInvalid, "name must not contain HTML tags, URLs, or control characters"},
			{member("u"), apikey.NewKey{Name: "x", ExpiresAt: &past}, daytona.ErrInvalid, "expiresAt"},
			{owner("u"), apikey.NewKey{Name: "x", Permissions: []identity.Permission{"write:everything"}}, daytona.ErrInvalid, "write:everything"},
			{member("u", identity.WriteSandboxes), apikey.NewKey{Name: "x", Permissions: []identity.Permission{identity.WriteSandboxes, identity.DeleteVolumes, identity.WriteRegistries}},
				daytona.ErrForbidden, "Insufficient permissions for assigning: write:registries, delete:volumes"},
			{member("u", identity.WriteSandboxes), apikey.NewKey{Name: "fine", Permissions: []identity.Permission{identity.WriteSandboxes}}, nil, ""},
			{owner("u"), apikey.NewKey{Name: "all", Permissions: identity.Permissions()}, nil, ""},
		} {
			_, value, err := s.Create(t.Context(), c.who, c.key)
			if !errors.Is(err, c.kind) || c.kind != nil && (value != "" || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%+v: %v", c.key, err)
			}
		}
	})
}

// Who manages keys has all of an organization, others have their own, and
// nobody those of another organization.
func TestWhose(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := apikey.New(db, nil)
		make1(t, s, member("a"), "one")
		make1(t, s, member("b"), "two")
		elsewhere := owner("a")
		elsewhere.OrganizationID = "elsewhere"
		make1(t, s, elsewhere, "three")
		names := func(p *identity.Principal) string {
			keys, err := s.List(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			var n []string
			for _, k := range keys {
				n = append(n, k.Name)
			}
			slices.Sort(n)
			return strings.Join(n, " ")
		}
		for _, c := range []struct {
			who  *identity.Principal
			want string
		}{
			{owner("x"), "one two"}, {member("a"), "one"}, {member("x"), ""}, {member("x", identity.ManageAPIKeys), "one two"}, {elsewhere, "three"},
		} {
			if got := names(c.who); got != c.want {
				t.Errorf("%+v: %q", c.who, got)
			}
		}
		if _, err := s.Get(ctx, member("a"), "two"); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if k, err := s.Get(ctx, member("a"), "one"); err != nil || k.UserID != "a" {
			t.Error(k, err)
		}
		for _, c := range []struct {
			who        *identity.Principal
			user, name string
			want       error
		}{
			{member("a"), "b", "two", daytona.ErrForbidden},
			{member("a"), "a", "none", daytona.ErrNotFound},
			{owner("x"), "a", "three", daytona.ErrNotFound},
			{member("a"), "a", "one", nil},
			{owner("x"), "b", "two", nil},
			{owner("x"), "b", "two", daytona.ErrNotFound},
		} {
			if err := s.Delete(ctx, c.who, c.user, c.name); !errors.Is(err, c.want) {
				t.Errorf("%+v: %v", c, err)
			}
		}
		if got := names(elsewhere); got != "three" {
			t.Error(got)
		}
	})
}

func TestExpires(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	s := apikey.New(db, nil)
	run(t, s)
	now := time.Now()
	s.SetClock(func() time.Time { return now })
	end := now.Add(time.Minute)
	_, value, err := s.Create(t.Context(), owner("u"), apikey.NewKey{Name: "short", ExpiresAt: &end})
	if err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]error{0: nil, 59 * time.Second: nil, time.Minute: daytona.ErrUnauthorized, time.Hour: daytona.ErrUnauthorized} {
		now = end.Add(after - time.Minute)
		if _, err := s.Validate(t.Context(), value); !errors.Is(err, want) {
			t.Errorf("after %v: %v", after, err)
		}
	}
}

// A key that one server revokes is refused by all others within a second,
// however it goes, though they have it in memory.
func TestRevokedElsewhere(t *testing.T) {
	url := storetest.Postgres(t)
	one, two := apikey.New(storetest.Open(t, url), nil), apikey.New(storetest.Open(t, url), nil)
	run(t, one)
	run(t, two)
	ctx := t.Context()
	for name, revoke := range map[string]func(p *identity.Principal) error{
		"delete":       func(p *identity.Principal) error { return one.Delete(ctx, owner("x"), p.UserID, "key") },
		"member left":  func(p *identity.Principal) error { return one.DeleteForMember(ctx, "org", p.UserID) },
		"fewer rights": func(p *identity.Principal) error { return one.DeleteExceeding(ctx, "org", p.UserID, nil) },
		"organization": func(p *identity.Principal) error { return one.DeleteForOrganization(ctx, "org") },
	} {
		t.Run(name, func(t *testing.T) {
			p := owner("user of " + name)
			value := make1(t, one, p, "key", identity.WriteSandboxes)
			for _, s := range []*apikey.Service{one, two, two} {
				if _, err := s.Validate(ctx, value); err != nil {
					t.Fatal(err)
				}
			}
			if err := revoke(p); err != nil {
				t.Fatal(err)
			}
			if _, err := one.Validate(ctx, value); !errors.Is(err, daytona.ErrUnauthorized) {
				t.Errorf("the server that revoked it takes it: %v", err)
			}
			began := time.Now()
			for {
				_, err := two.Validate(ctx, value)
				if errors.Is(err, daytona.ErrUnauthorized) {
					break
				}
				if time.Since(began) > time.Second {
					t.Fatal("another server takes it for more than a second")
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// Keys that have what their user has not any more go, others stay.
func TestDeleteExceeding(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := apikey.New(db, nil)
		bare := make1(t, s, owner("u"), "bare")
		write := make1(t, s, owner("u"), "write", identity.WriteSandboxes)
		both := make1(t, s, owner("u"), "both", identity.WriteSandboxes, identity.DeleteSandboxes)
		other := make1(t, s, owner("other"), "both", identity.WriteSandboxes, identity.DeleteSandboxes)
		if err := s.DeleteExceeding(ctx, "org", "u", []identity.Permission{identity.WriteSandboxes}); err != nil {
			t.Fatal(err)
		}
		for value, want := range map[string]error{bare: nil, write: nil, both: daytona.ErrUnauthorized, other: nil} {
			if _, err := s.Validate(ctx, value); !errors.Is(err, want) {
				t.Error(err, want)
			}
		}
	})
}

func TestLastUsed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := apikey.New(db, nil)
		p := owner("u")
		value := make1(t, s, p, "key")
		make1(t, s, p, "idle")
		if k, err := s.Get(ctx, p, "key"); err != nil || k.LastUsedAt != nil {
			t.Fatal(k, err)
		}
		before := time.Now().Add(-time.Millisecond)
		for range 3 {
			if _, err := s.Validate(ctx, value); err != nil {
				t.Fatal(err)
			}
		}
		if k, _ := s.Get(ctx, p, "key"); k.LastUsedAt != nil {
			t.Error("a request waits until it has been written down")
		}
		if err := s.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		k, err := s.Get(ctx, p, "key")
		if err != nil || k.LastUsedAt == nil || k.LastUsedAt.Before(before) || k.LastUsedAt.After(time.Now()) {
			t.Error(k, err)
		}
		if k, _ := s.Get(ctx, p, "idle"); k.LastUsedAt != nil {
			t.Error(k)
		}
		// A key that goes meanwhile is no error.
		s.Validate(ctx, value)
		if err := s.Delete(ctx, p, "u", "key"); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(ctx); err != nil {
			t.Error(err)
		}
	})
}

// The first key is made once, and follows the configuration.
func TestEnsure(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := apikey.New(db, nil)
		ensure := func(value string) string {
			t.Helper()
			made, err := s.Ensure(ctx, "org", "root", "admin", value)
			if err != nil {
				t.Fatal(err)
			}
			return made
		}
		first := ensure("")
		if !strings.HasPrefix(first, apikey.Prefix) || ensure("") != "" || ensure(first) != "" {
			t.Error("made more than once")
		}
		const given = "an admin key of my own"
		if ensure(given) != given || ensure(given) != "" || ensure("") != "" {
			t.Error("a key that was given is not the one")
		}
		if _, err := s.Validate(ctx, first); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Errorf("the old key works: %v", err)
		}
		if p, err := s.Validate(ctx, given); err != nil || len(p.Permissions) != len(identity.Permissions()) {
			t.Error(p, err)
		}
		if _, err := s.Ensure(ctx, "org", "root", "admin", "short"); !errors.Is(err, daytona.ErrInvalid) || strings.Contains(err.Error(), "short") {
			t.Error(err)
		}
	})
}

// Two users who make keys of the same name at once: one of each gets it.
func TestConcurrent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := apikey.New(db, nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		made := 0
		for range 8 {
			wg.Go(func() {
				_, _, err := s.Create(t.Context(), owner("u"), apikey.NewKey{Name: "same"})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					made++
				} else if !errors.Is(err, daytona.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if made != 1 {
			t.Error(made)
		}
	})
}

// A request with a key that is known costs a hash and no query.
func BenchmarkValidate(b *testing.B) {
	db := storetest.Open(b, storetest.SQLite(b))
	s := apikey.New(db, nil)
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	defer func() { stop(); <-done }()
	_, value, err := s.Create(ctx, owner("u"), apikey.NewKey{Name: "key"})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Validate(ctx, value); err != nil {
			b.Fatal(err)
		}
	}
}
