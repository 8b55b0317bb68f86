package live_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/live"
)

// topics are channels by name.
type topics map[string]chan string

func (t topics) Subscribe(name string) (<-chan string, func()) { return t[name], func() {} }

func TestWords(t *testing.T) {
	for payload, want := range map[string][]string{
		"": nil, "a": {"a"}, "org user": {"org", "user"}, `{"sandboxId":"x-1","o":"auth0|7"}`: {"sandboxId", "x-1", "o", "auth0|7"}, " \x1f ": nil,
	} {
		if got := live.Words(payload); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", payload, got, want)
		}
	}
}

// What hangs on a change is asked for again, twice, and ended if the answer is
// no; what can't be asked for stays, and so does all else.
func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := topics{"one": make(chan string), "two": make(chan string)}
		ctx, cancel := context.WithCancel(t.Context())
		s := live.New(0)
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx, c, "one", "two") }()
		type conn struct {
			answer atomic.Value // error, in a func
			asked  atomic.Int64
			ended  atomic.Int64
		}
		open := func(ids ...string) *conn {
			x := &conn{}
			x.answer.Store(func() error { return nil })
			s.Add(ids, func(context.Context) error { x.asked.Add(1); return x.answer.Load().(func() error)() }, func(error) { x.ended.Add(1) })
			return x
		}
		var forgotten []string
		s.OnChange(func(ids []string) { forgotten = append(forgotten, ids...) })
		a, b, both := open("a", ""), open("b"), open("a", "b")
		expect := func(what string, asked ...int64) {
			t.Helper()
			synctest.Wait()
			for i, x := range []*conn{a, b, both} {
				if got := x.asked.Swap(0); got != asked[i] {
					t.Errorf("%s: %d is asked %d times, want %d", what, i, got, asked[i])
				}
			}
		}
		c["one"] <- "key a"
		time.Sleep(time.Second)
		expect("a", 2, 0, 2)
		if !slices.Equal(forgotten, []string{"key", "a", "key", "a"}) {
			t.Errorf("%q", forgotten)
		}
		c["two"] <- ""
		time.Sleep(time.Second)
		expect("anything", 2, 2, 2)
		a.answer.Store(func() error { return errors.New("the database is away") })
		b.answer.Store(func() error { return daytona.ErrForbidden })
		c["two"] <- "a,b"
		time.Sleep(time.Second)
		expect("a and b", 2, 1, 2)
		if a.ended.Load() != 0 || b.ended.Load() != 1 || both.ended.Load() != 0 || s.Len() != 2 {
			t.Errorf("%d %d %d, %d are open", a.ended.Load(), b.ended.Load(), both.ended.Load(), s.Len())
		}
		// What no topic tells of.
		both.answer.Store(func() error { return daytona.ErrUnauthorized })
		time.Sleep(live.Interval)
		if both.ended.Load() != 1 || s.Len() != 1 {
			t.Errorf("%d, %d are open", both.ended.Load(), s.Len())
		}
		cancel()
		<-done
	})
}
