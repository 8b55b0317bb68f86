package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

func TestList(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		ctx := t.Context()
		start := w.now
		add := func(name string, n sandbox.Spec) *sandbox.Sandbox {
			w.pass(time.Minute)
			n.Name = name
			return w.create(n)
		}
		add("Alpha", sandbox.Spec{Labels: map[string]string{"team": "x", "odd%": "_"}, Public: true, AutoStop: new(0)})
		beta := add("beta", sandbox.Spec{Labels: map[string]string{"team": "x", "env": "prod"}, AutoStop: new(0)})
		add("al_ice", sandbox.Spec{Labels: map[string]string{"team": "y"}, TTL: new(600), AutoStop: new(0)})
		w.copies["r1 far-ref"] = sandbox.CopyReady
		add("big", sandbox.Spec{Snapshot: "far", AutoStop: new(0)})
		w.fails["CREATE_SANDBOX"] = `{"recoverable":true,"errorReason":"x"}`
		w.s.Create(ctx, "a", sandbox.Spec{Name: "broken"})
		w.fails["CREATE_SANDBOX"] = ""
		w.fails["DESTROY_SANDBOX"] = "busy"
		add("undead", sandbox.Spec{AutoStop: new(0)})
		w.s.Delete(ctx, "a", "undead")
		w.settle()
		w.fails["DESTROY_SANDBOX"] = ""
		gone := add("gone", sandbox.Spec{})
		w.s.Delete(ctx, "a", "gone")
		w.settle()
		if w.get(gone.ID).State != sandbox.Destroyed {
			t.Fatal(w.get(gone.ID).State)
		}
		w.s.Stop(ctx, "a", "beta", false)
		w.settle()
		if _, err := w.s.Create(ctx, "b", sandbox.Spec{Name: "theirs", Labels: map[string]string{"team": "x"}}); err != nil {
			t.Fatal(err)
		}

		all := []string{"Alpha", "al_ice", "beta", "big", "broken"}
		for name, c := range map[string]struct {
			f    sandbox.Filter
			want []string
		}{
			"all":             {sandbox.Filter{}, all},
			"id":              {sandbox.Filter{ID: strings.ToUpper(beta.ID[:20])}, []string{"beta"}},
			"name":            {sandbox.Filter{Name: "AL"}, []string{"Alpha", "al_ice"}},
			"name wildcard":   {sandbox.Filter{Name: "al_"}, []string{"al_ice"}},
			"name percent":    {sandbox.Filter{Name: "%"}, nil},
			"name within":     {sandbox.Filter{Name: "ET", Within: true}, []string{"beta"}},
			"label":           {sandbox.Filter{Labels: map[string]string{"team": "x"}}, []string{"Alpha", "beta"}},
			"labels":          {sandbox.Filter{Labels: map[string]string{"team": "x", "env": "prod"}}, []string{"beta"}},
			"odd label":       {sandbox.Filter{Labels: map[string]string{"odd%": "_"}}, []string{"Alpha"}},
			"no label":        {sandbox.Filter{Labels: map[string]string{"team": "z"}}, nil},
			"stopped":         {sandbox.Filter{States: []sandbox.State{sandbox.Stopped}}, []string{"beta"}},
			"states":          {sandbox.Filter{States: []sandbox.State{sandbox.Stopped, sandbox.Errored}}, []string{"beta", "broken"}},
			"errored deleted": {sandbox.Filter{IncludeErroredDeleted: true, States: []sandbox.State{sandbox.Errored}}, []string{"DESTROYED_undead_1795694700000", "broken"}},
			"snapshots":       {sandbox.Filter{Snapshots: []string{"far", "near"}}, []string{"big"}},
			"regions":         {sandbox.Filter{Regions: []string{"us"}}, nil},
			"classes":         {sandbox.Filter{Classes: []string{"container", "linux-vm"}}, all},
			"min cpu":         {sandbox.Filter{MinCPU: 2}, []string{"big"}},
			"max cpu":         {sandbox.Filter{MaxCPU: 1, Name: "b"}, []string{"beta", "broken"}},
			"min memory":      {sandbox.Filter{MinMemory: 4}, []string{"big"}},
			"max memory":      {sandbox.Filter{MaxMemory: 3, Name: "bi"}, nil},
			"min disk":        {sandbox.Filter{MinDisk: 4}, []string{"big"}},
			"max disk":        {sandbox.Filter{MaxDisk: 3, Name: "a"}, []string{"Alpha", "al_ice"}},
			"min gpu":         {sandbox.Filter{MinGPU: new(1)}, nil},
			"max gpu":         {sandbox.Filter{MaxGPU: new(0)}, all},
			"public":          {sandbox.Filter{Public: new(true)}, []string{"Alpha"}},
			"private":         {sandbox.Filter{Public: new(false), Name: "al"}, []string{"al_ice"}},
			"recoverable":     {sandbox.Filter{Recoverable: new(true)}, []string{"broken"}},
			"created after":   {sandbox.Filter{CreatedAfter: start.Add(4 * time.Minute)}, []string{"big", "broken"}},
			"created before":  {sandbox.Filter{CreatedBefore: start.Add(2 * time.Minute)}, []string{"Alpha", "beta"}},
			"event after":     {sandbox.Filter{LastEventAfter: start.Add(5 * time.Minute)}, []string{"beta"}},
			"event before":    {sandbox.Filter{LastEventBefore: start.Add(time.Minute)}, []string{"Alpha"}},
			"destroy after":   {sandbox.Filter{AutoDestroyAfter: start}, []string{"al_ice"}},
			"destroy until":   {sandbox.Filter{AutoDestroyUntil: start.Add(time.Hour)}, nil},
			"injection":       {sandbox.Filter{Name: "' OR 1=1 --"}, nil},
		} {
			t.Run(name, func(t *testing.T) {
				page, next, err := w.s.List(ctx, "a", c.f, "")
				if got := names(page); err != nil || next != "" || !slices.Equal(got, c.want) {
					t.Errorf("%q, %q, %v; want %q", got, next, err, c.want)
				}
			})
		}

		// Every order, in pages of two, has each once, and the same as the whole.
		for _, sort := range sandbox.Sorts(false) {
			for _, ascending := range []bool{true, false} {
				whole, _, err := w.s.List(ctx, "a", sandbox.Filter{Sort: sort, Ascending: ascending}, "")
				if err != nil || len(whole) != len(all) {
					t.Fatal(sort, err)
				}
				var got []*sandbox.Sandbox
				for cursor, first := "", true; first || cursor != ""; first = false {
					page, next, err := w.s.List(ctx, "a", sandbox.Filter{Sort: sort, Ascending: ascending, Limit: 2}, cursor)
					if err != nil || len(page) > 2 {
						t.Fatal(sort, err)
					}
					got, cursor = append(got, page...), next
				}
				for i := range whole {
					if i >= len(got) || got[i].ID != whole[i].ID {
						t.Fatalf("%s, ascending %v: pages differ", sort, ascending)
					}
				}
				if sort == "createdAt" && (whole[0].Name == "Alpha") != ascending {
					t.Error("not in order")
				}
			}
		}
		_, cursor, _ := w.s.List(ctx, "a", sandbox.Filter{Limit: 1}, "")
		for _, bad := range []string{"x", "e30=", cursor + "x", strings.Repeat("A", 5000)} {
			_, _, err := w.s.List(ctx, "a", sandbox.Filter{}, bad)
			wants(t, err, daytona.ErrInvalid, "Invalid cursor")
		}
		_, _, err := w.s.List(ctx, "a", sandbox.Filter{Sort: "name"}, cursor)
		wants(t, err, daytona.ErrInvalid, "Invalid cursor")
		// A cursor does not lead into another organization.
		if page, _, err := w.s.List(ctx, "b", sandbox.Filter{}, cursor); err != nil || len(page) > 1 || len(page) == 1 && page[0].OrganizationID != "b" {
			t.Error(page, err)
		}
		for _, f := range []sandbox.Filter{{Limit: 201}, {Limit: -1}, {Sort: "id"}, {States: []sandbox.State{"x"}}, {States: []sandbox.State{sandbox.Destroyed}}} {
			_, _, err := w.s.List(ctx, "a", f, "")
			wants(t, err, daytona.ErrInvalid, "")
		}
		for _, sort := range sandbox.Sorts(true) {
			page, total, err := w.s.Page(ctx, "a", sandbox.Filter{Sort: sort, Limit: 2}, 3)
			if err != nil || total != len(all) || len(page) != 1 {
				t.Error(sort, len(page), total, err)
			}
		}
	})
}

func names(page []*sandbox.Sandbox) []string {
	var all []string
	for _, sb := range page {
		all = append(all, sb.Name)
	}
	slices.Sort(all)
	return all
}

// What is of one organization, no method shows to or changes for another.
func TestIsolation(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, db)
	ctx := t.Context()
	sb := w.create(sandbox.Spec{Name: "x"})
	pool, err := w.s.CreatePool(ctx, "a", "default", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	access, err := w.s.CreateSSHAccess(ctx, "a", "x", 5)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := w.s.SignedPreviewURL(ctx, "a", "x", 80, 60)
	if err != nil {
		t.Fatal(err)
	}
	for _, org := range []string{"b", ""} {
		for _, id := range []string{"x", sb.ID} {
			for name, f := range map[string]func() error{
				"get":      func() error { _, err := w.s.Get(ctx, org, id); return err },
				"start":    func() error { _, err := w.s.Start(ctx, org, id); return err },
				"stop":     func() error { _, err := w.s.Stop(ctx, org, id, false); return err },
				"pause":    func() error { _, err := w.s.Pause(ctx, org, id); return err },
				"archive":  func() error { _, err := w.s.Archive(ctx, org, id); return err },
				"delete":   func() error { _, err := w.s.Delete(ctx, org, id); return err },
				"resize":   func() error { _, err := w.s.Resize(ctx, org, id, sandbox.Resources{CPU: 2}); return err },
				"fork":     func() error { _, err := w.s.Fork(ctx, org, id, ""); return err },
				"forks":    func() error { _, err := w.s.Forks(ctx, org, id, true); return err },
				"parent":   func() error { _, err := w.s.Parent(ctx, org, id); return err },
				"snapshot": func() error { _, err := w.s.Snapshot(ctx, org, id, "s", false); return err },
				"backup":   func() error { _, err := w.s.StartBackup(ctx, org, id); return err },
				"labels":   func() error { _, err := w.s.SetLabels(ctx, org, id, nil); return err },
				"public":   func() error { _, err := w.s.SetPublic(ctx, org, id, true); return err },
				"autostop": func() error { _, err := w.s.SetAutoStop(ctx, org, id, 0); return err },
				"ttl":      func() error { _, err := w.s.SetTTL(ctx, org, id, 1); return err },
				"network": func() error {
					_, err := w.s.SetNetwork(ctx, org, id, sandbox.NetworkUpdate{BlockAll: new(true)})
					return err
				},
				"secrets": func() error { _, err := w.s.SetSecrets(ctx, org, id, nil); return err },
				"preview": func() error { _, err := w.s.PreviewURL(ctx, org, id, 80); return err },
				"signed":  func() error { _, err := w.s.SignedPreviewURL(ctx, org, id, 80, 60); return err },
				"expire":  func() error { return w.s.ExpirePreviewURL(ctx, org, id, 80, signed.Token) },
				"ssh":     func() error { _, err := w.s.CreateSSHAccess(ctx, org, id, 5); return err },
				"revoke":  func() error { _, err := w.s.RevokeSSHAccess(ctx, org, id, access.Token); return err },
				"key":     func() error { _, err := w.s.OwnSigningKey(ctx, org, id); return err },
				"rotate":  func() error { _, err := w.s.RotateSigningKey(ctx, org, id); return err },
				"logs":    func() error { _, err := w.s.BuildLogsURL(ctx, org, id); return err },
				"link": func() error {
					_, err := w.s.Create(ctx, "b", sandbox.Spec{Linked: id, AutoDelete: new(0)})
					return err
				},
			} {
				if err := f(); !errors.Is(err, daytona.ErrNotFound) {
					t.Errorf("%s for %q: %v", name, org, err)
				}
			}
		}
		if _, err := w.s.ResizePool(ctx, org, pool.ID, 0); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if err := w.s.DeletePool(ctx, org, pool.ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if all, err := w.s.Pools(ctx, org); err != nil || len(all) != 0 {
			t.Error(all, err)
		}
		if all, _, err := w.s.List(ctx, org, sandbox.Filter{IncludeWarm: true, IncludeErroredDeleted: true}, ""); err != nil || len(all) != 0 {
			t.Error(all, err)
		}
		if _, n, err := w.s.Page(ctx, org, sandbox.Filter{IncludeWarm: true}, 1); err != nil || n != 0 {
			t.Error(n, err)
		}
	}
	if err := w.s.Touch(ctx, "b", sb.ID); !errors.Is(err, daytona.ErrNotFound) {
		t.Error(err)
	}
	if err := w.s.Touch(ctx, "a", sb.ID); err != nil {
		t.Error(err)
	}
	if err := w.s.Touch(ctx, "b", sb.ID); !errors.Is(err, daytona.ErrNotFound) {
		t.Error("once it is known:", err)
	}
	if err := w.s.StopAll(ctx, "b"); err != nil {
		t.Error(err)
	}
	if err := w.s.Unused(ctx, "b"); err != nil {
		t.Error(err)
	}
	wants(t, w.s.Unused(ctx, "a"), daytona.ErrConflict, "")
	if all, _ := w.s.Pools(ctx, "a"); len(all) != 1 || w.get(sb.ID).State != sandbox.Started {
		t.Error("another organization's end was this one's")
	}
	if err := w.s.StopAll(ctx, "a"); err != nil {
		t.Error(err)
	}
	w.settle()
	if got := w.get(sb.ID).State; got != sandbox.Stopped {
		t.Error(got)
	}
}

func TestAccess(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		ctx := t.Context()
		sb, other := w.create(sandbox.Spec{Name: "x"}), w.create(sandbox.Spec{Name: "y"})
		p, err := w.s.PreviewURL(ctx, "a", "x", 3000)
		if err != nil || len(p.Token) != 32 || strings.Trim(p.Token, "abcdefghijklmnopqrstuvwxyz0123456789") != "" || p.URL != "http://3000-"+sb.ID+".proxy.localhost:4000" {
			t.Error(p, err)
		}
		if ok, err := w.s.ValidPreviewToken(ctx, other.ID, p.Token); ok || err != nil {
			t.Error("a token opens another sandbox", err)
		}
		if found, err := w.s.ByToken(ctx, p.Token); err != nil || found.ID != sb.ID {
			t.Error(found, err)
		}
		if org, err := w.s.OrganizationByAuthToken(ctx, p.Token); err != nil || org != "a" {
			t.Error(org, err)
		}
		if _, err := w.s.OrganizationByAuthToken(ctx, ""); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		for _, port := range []int{0, -1, 65536} {
			_, err = w.s.PreviewURL(ctx, "a", "x", port)
			wants(t, err, daytona.ErrInvalid, "Invalid port")
		}
		signed, err := w.s.SignedPreviewURL(ctx, "a", "x", 3000, 60)
		if err != nil || len(signed.Token) != 16 || signed.URL != "http://3000-"+signed.Token+".proxy.localhost:4000" {
			t.Error(signed, err)
		}
		if id, until, err := w.s.SignedPreview(ctx, signed.Token, 3000); err != nil || id != sb.ID || !until.Equal(w.now.Add(time.Minute)) {
			t.Error(id, until, err)
		}
		for name, c := range map[string]struct {
			token string
			port  int
		}{"port": {signed.Token, 3001}, "token": {strings.Repeat("a", 16), 3000}, "auth token": {p.Token, 3000}, "none": {"", 3000}} {
			if _, _, err := w.s.SignedPreview(ctx, c.token, c.port); !errors.Is(err, daytona.ErrForbidden) {
				t.Errorf("another %s: %v", name, err)
			}
		}
		for _, seconds := range []int{0, -1, 86401} {
			_, err = w.s.SignedPreviewURL(ctx, "a", "x", 80, seconds)
			wants(t, err, daytona.ErrInvalid, "")
		}
		// Of another sandbox or port it is not ended.
		w.s.ExpirePreviewURL(ctx, "a", "y", 3000, signed.Token)
		w.s.ExpirePreviewURL(ctx, "a", "x", 3001, signed.Token)
		if _, _, err := w.s.SignedPreview(ctx, signed.Token, 3000); err != nil {
			t.Error(err)
		}
		if err := w.s.ExpirePreviewURL(ctx, "a", "x", 3000, signed.Token); err != nil {
			t.Error(err)
		}
		if _, _, err := w.s.SignedPreview(ctx, signed.Token, 3000); !errors.Is(err, daytona.ErrForbidden) {
			t.Error(err)
		}

		first, err := w.s.CreateSSHAccess(ctx, "a", "x", 10)
		if err != nil || len(first.Token) != 32 || first.Command != "ssh -p 2222 "+first.Token+"@localhost" {
			t.Error(first, err)
		}
		second, _ := w.s.CreateSSHAccess(ctx, "a", "x", 10)
		if _, err := w.s.SSHGrant(ctx, first.Token); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("the earlier one is valid:", err)
		}
		if g, err := w.s.SSHGrant(ctx, second.Token); err != nil || g.SandboxID != sb.ID || g.State != sandbox.Started {
			t.Error(g, err)
		}
		w.pass(11 * time.Minute)
		if _, err := w.s.SSHGrant(ctx, second.Token); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("it is over:", err)
		}
		third, _ := w.s.CreateSSHAccess(ctx, "a", "x", 10)
		w.s.RevokeSSHAccess(ctx, "a", "x", second.Token)
		if _, err := w.s.SSHGrant(ctx, third.Token); err != nil {
			t.Error(err)
		}
		w.s.RevokeSSHAccess(ctx, "a", "x", "")
		if _, err := w.s.SSHGrant(ctx, third.Token); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}

		key, err := w.s.OwnSigningKey(ctx, "a", sb.ID)
		if again, _ := w.s.SigningKey(ctx, sb.ID); err != nil || key == "" || again != key {
			t.Error(key, again, err)
		}
		rotated, err := w.s.RotateSigningKey(ctx, "a", sb.ID)
		if again, _ := w.s.SigningKey(ctx, sb.ID); err != nil || rotated == key || again != rotated {
			t.Error(rotated, again, err)
		}

		// Nothing of it is in the database in the clear.
		var dump []string
		for _, table := range []string{"sandboxes", "sandbox_preview_tokens", "sandbox_ssh_access"} {
			rows, err := db.All(ctx).QueryContext(ctx, "SELECT * FROM "+table)
			if err != nil {
				t.Fatal(err)
			}
			columns, _ := rows.Columns()
			for rows.Next() {
				values := make([]any, len(columns))
				for i := range values {
					values[i] = new(any)
				}
				if err := rows.Scan(values...); err != nil {
					t.Fatal(err)
				}
				for _, v := range values {
					dump = append(dump, fmt.Sprintf("%s", *v.(*any)))
				}
			}
			rows.Close()
		}
		text := strings.Join(dump, "\n")
		if !strings.Contains(text, sb.ID) {
			t.Fatal("the dump is empty")
		}
		for _, secret := range []string{p.Token, signed.Token, first.Token, third.Token, key, rotated} {
			if strings.Contains(text, secret) {
				t.Error("a secret is in the database")
			}
		}
		// All of it ends with the sandbox.
		signed, _ = w.s.SignedPreviewURL(ctx, "a", "x", 3000, 60)
		w.s.Delete(ctx, "a", "x")
		w.settle()
		if _, _, err := w.s.SignedPreview(ctx, signed.Token, 3000); !errors.Is(err, daytona.ErrForbidden) {
			t.Error(err)
		}
	})
}

func TestPools(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		events := make(chan sandbox.Event, 10000)
		w := newWorld(t, db, func(c *sandbox.Config) {
			c.Event = func(ctx context.Context, e sandbox.Event) error {
				store.After(ctx, func() { events <- e })
				return nil
			}
		})
		ctx := t.Context()
		pool, err := w.s.CreatePool(ctx, "a", "default", "", 2)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.s.CreatePool(ctx, "a", "default", "", 2)
		wants(t, err, daytona.ErrConflict, "")
		w.sweep()
		w.sweep()
		members := func() []*sandbox.Sandbox {
			all, _, err := w.s.List(ctx, "a", sandbox.Filter{IncludeWarm: true, Sort: "createdAt", Ascending: true}, "")
			if err != nil {
				t.Fatal(err)
			}
			return slices.DeleteFunc(all, func(sb *sandbox.Sandbox) bool { return sb.WarmPoolID == "" })
		}
		waiting := members()
		if len(waiting) != 2 || waiting[0].State != sandbox.Started || waiting[0].WarmPoolID != pool.ID {
			t.Fatalf("%+v", waiting)
		}
		if shown, _, _ := w.s.List(ctx, "a", sandbox.Filter{}, ""); len(shown) != 0 {
			t.Error("the list shows what waits")
		}
		if all, _ := w.s.Pools(ctx, "a"); len(all) != 1 || all[0].Current != 2 {
			t.Errorf("%+v", all)
		}
		// They do not stop by themselves.
		w.pass(time.Hour)
		w.sweep()
		token, _ := w.s.PreviewURL(ctx, "a", waiting[0].ID, 80)
		key, _ := w.s.SigningKey(ctx, waiting[0].ID)

		// What asks for something else gets none of them.
		for _, n := range []sandbox.Spec{{Env: map[string]string{"A": "b"}}, {User: "root"}, {NetworkBlockAll: true}, {Volumes: []sandbox.Volume{{VolumeID: "data", MountPath: "/d"}}}} {
			if sb := w.create(n); sb.ID == waiting[0].ID || sb.ID == waiting[1].ID {
				t.Errorf("%+v got one of the pool", n)
			}
		}
		if sb, err := w.s.Create(ctx, "b", sandbox.Spec{}); err != nil || sb.ID == waiting[0].ID || sb.ID == waiting[1].ID {
			t.Error("another organization got one of the pool", err)
		}
		w.pass(time.Minute)
		jobs := len(w.open())
		sb := w.create(sandbox.Spec{Name: "mine", Labels: map[string]string{"k": "v"}, AutoStop: new(7), TTL: new(60)})
		if sb.ID != waiting[0].ID || sb.State != sandbox.Started || sb.Name != "mine" || sb.Labels["k"] != "v" || len(w.open()) != jobs {
			t.Fatalf("%+v", sb)
		}
		// Nothing says that it waited: no event, and no field.
		for e := range events {
			if e.Sandbox.ID != sb.ID {
				continue // those that did not come from the pool
			}
			if e.Name != "sandbox.created" {
				t.Error("the first event is", e.Name)
			}
			break
		}
		sb = w.get(sb.ID)
		if sb.WarmPoolID != "" || !sb.CreatedAt.Equal(w.now) || !sb.LastActivityAt.Equal(w.now) || sb.AutoStop != 7 || sb.DestroyAt == nil || !sb.DestroyAt.Equal(w.now.Add(time.Hour)) {
			t.Errorf("%+v", sb)
		}
		if after, _ := w.s.PreviewURL(ctx, "a", sb.ID, 80); after.Token == token.Token {
			t.Error("it has the token that it had in the pool")
		}
		if after, _ := w.s.SigningKey(ctx, sb.ID); after == key {
			t.Error("it has the key that it had in the pool")
		}
		if found, _, _ := w.s.List(ctx, "a", sandbox.Filter{Labels: map[string]string{"k": "v"}}, ""); len(found) != 1 {
			t.Error("its labels are not found")
		}
		_, err = w.s.Create(ctx, "a", sandbox.Spec{Name: "mine"})
		wants(t, err, daytona.ErrConflict, "Sandbox with name mine already exists")
		w.sweep()
		if waiting = members(); len(waiting) != 2 {
			t.Fatalf("the pool has %d after one left", len(waiting))
		}
		// One that a runner loses is replaced.
		if err := w.s.Report(ctx, "r1", waiting[0].ID, sandbox.Errored, "x", false); err != nil {
			t.Fatal(err)
		}
		w.sweep()
		w.sweep()
		if waiting = members(); len(waiting) != 2 || waiting[0].State != sandbox.Started || waiting[1].State != sandbox.Started {
			t.Fatalf("%+v", waiting)
		}
		if p, err := w.s.ResizePool(ctx, "a", pool.ID, 1); err != nil || p.Size != 1 {
			t.Fatal(p, err)
		}
		w.sweep()
		if waiting = members(); len(waiting) != 1 {
			t.Fatalf("%+v", waiting)
		}
		// Two at once do not get the same one.
		got := make(chan string, 4)
		for range 4 {
			w.wg.Go(func() {
				sb, err := w.s.Create(ctx, "a", sandbox.Spec{})
				if err != nil {
					t.Error(err)
					sb = &sandbox.Sandbox{}
				}
				got <- sb.ID
			})
		}
		seen := map[string]bool{}
		for range 4 {
			id := <-got
			if seen[id] {
				t.Error("one was given twice")
			}
			seen[id] = true
		}
		w.sweep()
		if err := w.s.DeletePool(ctx, "a", pool.ID); err != nil {
			t.Fatal(err)
		}
		w.sweep()
		if waiting = members(); len(waiting) != 0 {
			t.Fatalf("%+v", waiting)
		}
		if sb = w.get(sb.ID); sb.State != sandbox.Started {
			t.Error("what was claimed went with the pool")
		}
	})
}

// BenchmarkList is a page of a hundred of two thousand.
func BenchmarkList(b *testing.B) {
	db := storetest.Open(b, storetest.SQLite(b))
	w := newWorld(b, db)
	fill(w, 2000)
	for _, c := range listCases() {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := w.s.List(context.Background(), "a", c.f, ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type listCase struct {
	name string
	f    sandbox.Filter
}

func listCases() []listCase {
	return []listCase{
		{"default", sandbox.Filter{}},
		{"created", sandbox.Filter{Sort: "createdAt", Ascending: true}},
		{"name", sandbox.Filter{Sort: "name"}},
		{"cpu", sandbox.Filter{Sort: "cpu"}},
		{"label", sandbox.Filter{Labels: map[string]string{"i": "7"}}},
		{"state", sandbox.Filter{States: []sandbox.State{sandbox.Started}}},
		{"prefix", sandbox.Filter{Name: "sb-19"}},
	}
}

// fill makes n sandboxes of the one that it creates.
func fill(w *world, n int) {
	ctx := context.Background()
	one := w.create(sandbox.Spec{Name: "sb", Env: map[string]string{"LONG": strings.Repeat("x", 500)}})
	err := w.db.Tx(ctx, func(ctx context.Context) error {
		for at := 0; at < n; at += 200 {
			var rows []sandbox.Sandbox
			for i := at; i < at+200; i++ {
				sb := *one
				sb.ID, sb.Name = fmt.Sprintf("%08x-0000-4000-8000-%012x", i*7919, i), fmt.Sprintf("sb-%d", i)
				sb.CreatedAt = one.CreatedAt.Add(time.Duration(i) * time.Second)
				sb.LastActivityAt, sb.CPU, sb.Labels = sb.CreatedAt, 1+i%4, map[string]string{"i": fmt.Sprint(i % 10)}
				rows = append(rows, sb)
			}
			if _, err := w.db.All(ctx).NewInsert().Model(&rows).Exec(ctx); err != nil {
				return err
			}
			for i, sb := range rows {
				if _, err := w.db.All(ctx).ExecContext(ctx, "INSERT INTO sandbox_labels (organization_id, sandbox_id, name, value) VALUES ('a', '"+sb.ID+"', 'i', '"+fmt.Sprint((at+i)%10)+"')"); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// BenchmarkCreate is what the service adds to a runner that takes no time.
func BenchmarkCreate(b *testing.B) {
	db := storetest.Open(b, storetest.SQLite(b))
	w := newWorld(b, db)
	w.limit.CPU = 1 << 30
	for b.Loop() {
		if sb, err := w.s.Create(context.Background(), "a", sandbox.Spec{}); err != nil || sb.State != sandbox.Started {
			b.Fatal(sb, err)
		}
	}
}
