package daytona_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
)

// grudging is a wrapper that hides all capabilities but Watcher, whatever its
// own methods are.
type grudging struct{ *daytonatest.Fake }

func (g grudging) As(target any) bool {
	w, ok := target.(*daytona.Watcher)
	if ok {
		*w = g.Fake
	}
	return ok
}

// bare embeds the interface, and with it no capability.
type bare struct{ daytona.Backend }

func TestAs(t *testing.T) {
	fake := daytonatest.NewFake() // an Updater and a Watcher
	for _, x := range []struct {
		name                    string
		b                       daytona.Backend
		updater, watcher, pause bool
	}{
		{"by its methods", fake, true, true, false},
		{"by its word", grudging{fake}, false, true, false},
		{"of an embedded interface", bare{fake}, false, false, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			u, updater := daytona.As[daytona.Updater](x.b)
			w, watcher := daytona.As[daytona.Watcher](x.b)
			p, pause := daytona.As[daytona.Pauser](x.b)
			if updater != x.updater || watcher != x.watcher || pause != x.pause {
				t.Errorf("Updater %v, Watcher %v, Pauser %v; want %v, %v, %v", updater, watcher, pause, x.updater, x.watcher, x.pause)
			}
			if (u != nil) != x.updater || (w != nil) != x.watcher || (p != nil) != x.pause {
				t.Errorf("found %v, %v, %v", u, w, p)
			}
			sb, err := daytona.New(x.b).Create(t.Context(), daytona.Spec{})
			if err != nil {
				t.Fatal(err)
			}
			err = sb.Update(t.Context(), daytona.Update{Labels: map[string]string{"a": "b"}})
			if x.updater != (err == nil) || err != nil && daytona.KindOf(err) != daytona.KindUnsupported {
				t.Errorf("Update: %v", err)
			}
		})
	}
}

func ExampleAs() {
	client := daytona.New(daytonatest.NewFake())
	defer client.Close()
	sb, err := client.Create(context.Background(), daytona.Spec{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if w, ok := daytona.As[daytona.Watcher](client.Backend()); ok {
		info, err := w.Wait(context.Background(), sb.ID(), daytona.StateStarted)
		fmt.Println(info.State, err)
	}
	// Output: started <nil>
}
