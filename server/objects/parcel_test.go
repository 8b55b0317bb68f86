package objects_test

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// TestParcels puts what runners exchange into the storage: an organization's is
// for its own runners' jobs, for a while, and goes when nothing needs it.
func TestParcels(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		ctx := t.Context()
		used := map[string]bool{"one": true, "two": true}
		e.ParcelUsed = func(_ context.Context, ref string) (bool, error) { return used[ref], nil }
		open := func(org, ref string, write bool) (c *minio.Client, bucket, key string) {
			t.Helper()
			l, key, err := e.Parcel(ctx, org, ref, write)
			if err != nil {
				t.Fatal(err)
			}
			return client(t, l.Endpoint, l.AccessKey, l.SecretKey, l.SessionToken), l.Bucket, l.Prefix + "/" + key
		}
		read := func(c *minio.Client, bucket, key string) (string, error) {
			o, err := c.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
			if err != nil {
				return "", err
			}
			data, err := io.ReadAll(o)
			return string(data), err
		}
		for _, ref := range []string{"one", "two"} {
			c, bucket, key := open("org", ref, true)
			if _, err := c.PutObject(ctx, bucket, key, bytes.NewReader([]byte(ref)), int64(len(ref)), minio.PutObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		c, bucket, one := open("org", "one", false)
		if got, err := read(c, bucket, one); got != "one" || err != nil {
			t.Fatalf("%q %v", got, err)
		}
		// Another organization's job, and what a client may push with.
		other, _, _ := open("other", "one", false)
		if got, err := read(other, bucket, one); code(err) != "AccessDenied" {
			t.Errorf("another organization reads %q, %v", got, err)
		}
		a, err := e.PushAccess(ctx, "org")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(client(t, e.server.URL, a.AccessKey, a.Secret, a.SessionToken), bucket, one); code(err) != "AccessDenied" {
			t.Errorf("a client reads %q, %v", got, err)
		}

		sweep := func() {
			t.Helper()
			if err := e.SweepParcels(ctx); err != nil {
				t.Fatal(err)
			}
		}
		delete(used, "one")
		sweep() // it may be one that is being made
		if got, err := read(c, bucket, one); got != "one" || err != nil {
			t.Errorf("a young one: %q %v", got, err)
		}
		e.offset.Store(int64(4 * time.Hour))
		sweep()
		if _, err := e.store.Stat(bucket, one); err == nil {
			t.Error("what nobody needs is still there")
		}
		_, bucket, two := open("org", "two", false)
		if _, err := e.store.Stat(bucket, two); err != nil {
			t.Errorf("what is needed has gone: %v", err)
		}
		sweep()
		// A credential is over after six hours.
		e.offset.Store(int64(7 * time.Hour))
		if got, err := read(c, bucket, two); err == nil {
			t.Errorf("a credential that is over reads %q", got)
		}
	})
}
