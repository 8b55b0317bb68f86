package toolbox

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestQuiet: once for each time without a request, and not during one.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newActivity(0)
		var mu sync.Mutex
		begin, at := time.Now(), []time.Duration(nil)
		a.onQuiet(time.Minute, func() {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(begin))
		})
		want := func(step string, want ...time.Duration) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(at) != len(want) {
				t.Fatalf("%s: called at %v, want %v", step, at, want)
			}
			for i := range want {
				if at[i] != want[i] {
					t.Errorf("%s: called at %v, want %v", step, at, want)
				}
			}
		}
		time.Sleep(50 * time.Second)
		a.begin()()
		time.Sleep(50 * time.Second)
		want("a request in between")
		time.Sleep(time.Hour)
		want("quiet", 110*time.Second)
		mu.Lock()
		begin, at = time.Now(), nil
		mu.Unlock()
		end := a.begin()
		time.Sleep(time.Hour)
		want("a long request")
		end()
		time.Sleep(30 * time.Second)
		end = a.begin()
		time.Sleep(time.Hour)
		want("another long request")
		end()
		time.Sleep(time.Hour)
		want("its end", 2*time.Hour+90*time.Second)
		a.begin()()
		a.close()
		time.Sleep(time.Hour)
		want("closed", 2*time.Hour+90*time.Second)
	})
}
