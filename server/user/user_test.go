package user_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/server/user"
)

// organizations counts the personal organizations that were made.
type organizations struct {
	mu   sync.Mutex
	made map[string]string // regions by user
	err  error
}

func (o *organizations) CreatePersonal(ctx context.Context, userID, region string) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return "", o.err
	}
	if o.made == nil {
		o.made = map[string]string{}
	}
	o.made[userID] = region
	return "org-" + userID, nil
}

func (o *organizations) Personal(ctx context.Context, userID string) (string, error) {
	return "org-" + userID, nil
}

func TestProvision(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		o := &organizations{}
		s := user.New(db, o, nil)
		c := identity.Claims{Subject: "auth0|1", Email: "a@example.com", EmailVerified: true, Name: "Ada"}
		// Many first requests at once make one user.
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				p, err := s.Provision(ctx, c)
				if err != nil || p.UserID != c.Subject || p.Email != c.Email || p.Name != "Ada" || p.Admin || p.Kind != identity.JWT {
					t.Errorf("%+v %v", p, err)
				}
			})
		}
		wg.Wait()
		if list, err := s.List(ctx); err != nil || len(list) != 1 {
			t.Error(list, err)
		}
		if region, ok := o.made[c.Subject]; !ok || region != "" {
			t.Errorf("%v", o.made)
		}
		// What a later token says is kept; what it does not say stays.
		for _, step := range []struct {
			claims                identity.Claims
			name, email, verified string
		}{
			{identity.Claims{Subject: c.Subject}, "Ada", "a@example.com", "yes"},
			{identity.Claims{Subject: c.Subject, Name: "Ada L", Email: "b@example.com"}, "Ada L", "b@example.com", "no"},
			{identity.Claims{Subject: c.Subject, Username: "ada", Email: "b@example.com", EmailVerified: true}, "ada", "b@example.com", "yes"},
			{identity.Claims{Subject: c.Subject, Name: "<script>", Email: "no address"}, "ada", "b@example.com", "yes"},
		} {
			if _, err := s.Provision(ctx, step.claims); err != nil {
				t.Fatal(err)
			}
			u, err := s.Get(ctx, c.Subject)
			if err != nil || u.Name != step.name || u.Email != step.email || u.EmailVerified != (step.verified == "yes") {
				t.Errorf("%+v: %+v %v", step, u, err)
			}
		}
		// Somebody of whom little is known, or nothing that can be shown.
		for _, c := range []identity.Claims{{Subject: "x"}, {Subject: "y", Name: "http://evil", Email: "nothing\n"}} {
			if p, err := s.Provision(ctx, c); err != nil || p.Name != c.Subject || p.Email != "" {
				t.Errorf("%+v %v", p, err)
			}
		}
		for _, subject := range []string{"", strings.Repeat("x", 256)} {
			if _, err := s.Provision(ctx, identity.Claims{Subject: subject}); !errors.Is(err, daytona.ErrUnauthorized) {
				t.Error(err)
			}
		}
	})
}

// A user without an organization is nobody: both are made, or none.
func TestProvisionFails(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		o := &organizations{err: errors.New("no")}
		s := user.New(db, o, nil)
		if _, err := s.Provision(t.Context(), identity.Claims{Subject: "u"}); err == nil {
			t.Error("no error")
		}
		if _, err := s.Get(t.Context(), "u"); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		o.err = nil
		if _, err := s.Provision(t.Context(), identity.Claims{Subject: "u"}); err != nil {
			t.Error(err)
		}
	})
}

// What one server learns of a user, the others know in a moment.
func TestFillElsewhere(t *testing.T) {
	url := storetest.Postgres(t)
	var services []*user.Service
	for range 2 {
		s := user.New(storetest.Open(t, url), &organizations{}, nil)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		t.Cleanup(func() { stop(); <-done })
		services = append(services, s)
	}
	ctx := t.Context()
	name := func(s *user.Service) string {
		p := &identity.Principal{UserID: "u"}
		if err := s.Fill(ctx, p); err != nil {
			t.Fatal(err)
		}
		return p.Name
	}
	if err := services[0].Fill(ctx, &identity.Principal{UserID: "u"}); !errors.Is(err, daytona.ErrNotFound) {
		t.Error(err)
	}
	services[0].Provision(ctx, identity.Claims{Subject: "u", Name: "Before"})
	for _, s := range services {
		if n := name(s); n != "Before" {
			t.Error(n)
		}
	}
	services[0].Provision(ctx, identity.Claims{Subject: "u", Name: "After"})
	if n := name(services[0]); n != "After" {
		t.Error(n)
	}
	for began := time.Now(); name(services[1]) != "After"; time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Second {
			t.Fatal("another server does not know after a second")
		}
	}
}

func TestCreate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		o := &organizations{}
		s := user.New(db, o, nil)
		u, org, err := s.Create(ctx, user.NewUser{ID: "root", Name: "Root", Email: "root@example.com", Role: user.Admin, DefaultRegionID: "eu"})
		if err != nil || org != "org-root" || o.made["root"] != "eu" || u.Role != user.Admin {
			t.Errorf("%+v %s %v", u, org, err)
		}
		p := &identity.Principal{UserID: "root"}
		if err := s.Fill(ctx, p); err != nil || !p.Admin {
			t.Error(p, err)
		}
		for _, c := range []struct {
			n    user.NewUser
			want error
		}{
			{user.NewUser{ID: "root", Name: "Again"}, daytona.ErrConflict},
			{user.NewUser{Name: ""}, daytona.ErrInvalid},
			{user.NewUser{Name: "<b>"}, daytona.ErrInvalid},
			{user.NewUser{Name: strings.Repeat("a", 300)}, daytona.ErrInvalid},
			{user.NewUser{Name: "x", Email: "nothing"}, daytona.ErrInvalid},
			{user.NewUser{Name: "x", Email: "A <a@example.com>"}, daytona.ErrInvalid},
			{user.NewUser{Name: "x", Role: "god"}, daytona.ErrInvalid},
			{user.NewUser{Name: "x"}, nil},
		} {
			if u, _, err := s.Create(ctx, c.n); !errors.Is(err, c.want) || err == nil && (u.ID == "" || u.Role != user.Ordinary) {
				t.Errorf("%+v: %v", c.n, err)
			}
		}
		many, err := s.Many(ctx, []string{"root", "nobody"})
		if err != nil || len(many) != 1 || many["root"].Name != "Root" {
			t.Error(many, err)
		}
		if many, err := s.Many(ctx, nil); err != nil || len(many) != 0 {
			t.Error(many, err)
		}
	})
}

func TestRegenerateKeyPair(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := user.New(db, &organizations{}, nil)
		s.Provision(ctx, identity.Claims{Subject: "u"})
		var last string
		for range 2 {
			u, private, err := s.RegenerateKeyPair(ctx, "u")
			if err != nil {
				t.Fatal(err)
			}
			signer, err := ssh.ParsePrivateKey([]byte(private))
			if err != nil {
				t.Fatal(err)
			}
			got, _ := s.Get(ctx, "u")
			want := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
			if len(got.PublicKeys) != 1 || got.PublicKeys[0].Key != want || want == last || len(u.PublicKeys) != 1 {
				t.Errorf("%+v %s", got.PublicKeys, want)
			}
			last = want
		}
		if _, _, err := s.RegenerateKeyPair(ctx, "nobody"); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
	})
}

// keys makes a key once.
type keys struct{ organization, user, name, value string }

func (k *keys) Ensure(_ context.Context, organizationID, userID, name, value string) (string, error) {
	if k.user != "" {
		return "", nil
	}
	if value == "" {
		value = "made"
	}
	*k = keys{organizationID, userID, name, value}
	return value, nil
}

func TestBootstrap(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		o := &organizations{}
		s, k := user.New(db, o, nil), &keys{}
		key, err := s.Bootstrap(ctx, k, "root@example.com", "", "eu")
		if err != nil || key != "made" || k.user != "daytona-admin" || k.organization != "org-daytona-admin" || o.made["daytona-admin"] != "eu" {
			t.Errorf("%q %+v %v", key, k, err)
		}
		u, err := s.Get(ctx, user.AdminID)
		if err != nil || u.Name != "Daytona Admin" || u.Role != user.Admin || u.Email != "root@example.com" {
			t.Errorf("%+v %v", u, err)
		}
		if key, err := s.Bootstrap(ctx, k, "root@example.com", "", "eu"); err != nil || key != "" {
			t.Errorf("%q %v", key, err)
		}
	})
}

func TestPending(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := user.New(db, &organizations{}, nil)
		pend := func(userID, subject string) string {
			t.Helper()
			a, err := s.Pend(ctx, user.PendingAccount{UserID: userID, OrganizationID: "org", Provider: "idp", ProviderName: "Corp", ProviderUserID: subject})
			if err != nil {
				t.Fatal(err)
			}
			return a.ID
		}
		one, two := pend("u", "1"), pend("u", "2")
		pend("u", "1") // asked again
		if list, err := s.Pending(ctx, "u"); err != nil || len(list) != 2 {
			t.Error(list, err)
		}
		if list, err := s.Pending(ctx, "other"); err != nil || len(list) != 0 {
			t.Error(list, err)
		}
		if err := s.Confirm(ctx, "other", one); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("somebody else says yes:", err)
		}
		if err := s.Dismiss(ctx, "other", two); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("somebody else says no:", err)
		}
		if err := s.Confirm(ctx, "u", one); err != nil {
			t.Error(err)
		}
		if err := s.Dismiss(ctx, "u", two); err != nil {
			t.Error(err)
		}
		if id, err := s.ByAccount(ctx, "idp", "1"); err != nil || id != "u" {
			t.Error(id, err)
		}
		if _, err := s.ByAccount(ctx, "idp", "2"); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		// An account is one user's.
		if err := s.Confirm(ctx, "other", pend("other", "1")); !errors.Is(err, daytona.ErrConflict) {
			t.Error(err)
		}
		if err := s.Unlink(ctx, "other", "idp", "1"); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if err := s.Unlink(ctx, "u", "idp", "1"); err != nil {
			t.Error(err)
		}
		old, err := s.Pend(ctx, user.PendingAccount{UserID: "u", Provider: "idp", ProviderUserID: "9", ExpiresAt: time.Now().Add(-time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Confirm(ctx, "u", old.ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("what has expired is confirmed:", err)
		}
	})
}
