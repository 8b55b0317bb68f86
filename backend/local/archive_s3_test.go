package local_test

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/archive/s3"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/internal/objects/s3test"
)

// openArchiving opens an engine by URL, whose archives are elsewhere.
func openArchiving(t *testing.T, archive string) (*daytona.Client, string) {
	t.Helper()
	dir := t.TempDir()
	c, err := daytona.Open(t.Context(), "local://"+dir+"?archive="+url.QueryEscape(archive))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if _, ok := daytona.As[daytona.Archiver](c.Backend()); !ok || os.Geteuid() != 0 {
		t.Skip("this engine cannot archive")
	}
	return c, dir
}

// filesBelow are the names of the files of a directory.
func filesBelow(t *testing.T, dir string) (files []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			files = append(files, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

// archivedThere makes a sandbox with a file and archives it.
func archivedThere(t *testing.T, c *daytona.Client) (daytona.Sandbox, string) {
	t.Helper()
	sb, err := c.Create(t.Context(), daytona.Spec{Name: "moved", User: "root", Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := sb.Process().Exec(t.Context(), "mkdir -p /data && head -c 40000000 /dev/urandom > /data/f && chown 1234:5678 /data/f && chmod 640 /data/f && sha256sum /data/f", nil)
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%v %+v", err, r)
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return sb, strings.TrimSpace(r.Output)
}

func checkFile(t *testing.T, sb daytona.Sandbox, sum string) {
	t.Helper()
	if err := sb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := sb.Process().Exec(t.Context(), "stat -c %u:%g:%a /data/f && sha256sum /data/f", nil)
	if err != nil || strings.TrimSpace(r.Output) != "1234:5678:640\n"+sum {
		t.Errorf("its file is %q, %v, want %s", r.Output, err, sum)
	}
}

// TestArchiveS3 moves a sandbox from one state directory to another through a
// bucket; one whose archive is damaged stays where it is.
func TestArchiveS3(t *testing.T) {
	server := s3test.Start(t)
	where := server.Environment(t, "team/archives")
	a, dir := openArchiving(t, where)
	sb, sum := archivedThere(t, a)
	ctx := t.Context()
	if err := sb.Archive(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "archive")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory that nothing is archived into: %v", err)
	}
	var object string
	for _, f := range filesBelow(t, filepath.Join(server.Dir, "team", "archives")) {
		if filepath.Base(f) == "0" {
			object = f
		}
	}
	whole, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	b, other := openArchiving(t, where)
	restorer, _ := daytona.As[daytona.Archiver](b.Backend())
	for name, at := range map[string]int{"begin": 10, "middle": len(whole) / 2, "digest": len(whole) - 3} {
		bad := append([]byte{}, whole...)
		bad[at] ^= 4
		if err := os.WriteFile(object, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := restorer.Restore(ctx, sb.ID()); !errors.Is(err, daytona.ErrInternal) || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: restore of a damaged archive: %v", name, err)
		}
		if i, err := b.Get(ctx, sb.ID()); err != nil || i.Info().State != daytona.StateArchived {
			t.Errorf("%s: afterwards: %+v, %v", name, i, err)
		}
		if _, err := os.Stat(filepath.Join(other, "sandboxes", sb.ID(), "fs")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: half of its files: %v", name, err)
		}
	}
	if err := os.WriteFile(object, whole, 0o644); err != nil {
		t.Fatal(err)
	}
	i, err := restorer.Restore(ctx, sb.ID())
	if err != nil || i.State != daytona.StateStopped || i.Name != "moved" {
		t.Fatalf("restored: %+v, %v", i, err)
	}
	if left := filesBelow(t, server.Dir); len(left) > 0 {
		t.Errorf("left in the bucket: %v", left)
	}
	there, err := b.Get(ctx, "moved")
	if err != nil {
		t.Fatal(err)
	}
	checkFile(t, there, sum)
	if err := sb.Delete(ctx); err != nil {
		t.Error(err)
	}
}

// TestArchiveS3Down archives where nobody answers, and where the server dies in
// the middle.
func TestArchiveS3Down(t *testing.T) {
	server := s3test.Start(t)
	c, _ := openArchiving(t, server.Environment(t, "a"))
	sb, sum := archivedThere(t, c)
	ctx := t.Context()
	stopped := func(when string, err error) {
		t.Helper()
		if !errors.Is(err, daytona.ErrUnavailable) {
			t.Errorf("%s: archive: %v (%s)", when, err, daytona.KindOf(err))
		}
		if i, err := sb.Refresh(ctx); err != nil || i.State != daytona.StateStopped {
			t.Errorf("%s: it is %s, %v", when, i.State, err)
		}
		if text := err.Error(); strings.Contains(text, server.Location.SecretKey) || strings.Contains(text, server.Location.AccessKey) {
			t.Errorf("%s: the error shows a credential: %s", when, text)
		}
	}
	server.Kill(t)
	stopped("the server is down", sb.Archive(ctx))
	server.Restart(t)

	// Once the first of several parts is there.
	watched, cancel := context.WithCancel(ctx)
	killed := make(chan bool, 1)
	go func() {
		for watched.Err() == nil {
			if parts, _ := filepath.Glob(filepath.Join(server.Dir, ".sgwtmp", "multipart", "*", "*", "*")); len(parts) > 0 {
				server.Kill(t)
				killed <- true
				return
			}
			time.Sleep(time.Millisecond)
		}
		killed <- false
	}()
	err := sb.Archive(ctx)
	cancel()
	if !<-killed {
		t.Fatalf("the upload had no parts to be killed in: %v", err)
	}
	stopped("killed half-way", err)
	checkFile(t, sb, sum)
	if err := sb.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	server.Restart(t)
	if err := sb.Archive(ctx); err != nil {
		t.Fatal(err)
	}
	server.Kill(t)
	if err := sb.Start(ctx); !errors.Is(err, daytona.ErrUnavailable) {
		t.Errorf("start without the archive: %v", err)
	}
	if i, err := sb.Refresh(ctx); err != nil || i.State != daytona.StateArchived {
		t.Errorf("afterwards it is %s, %v", i.State, err)
	}
	server.Restart(t)
	checkFile(t, sb, sum)
	for _, f := range filesBelow(t, filepath.Join(server.Dir, "a")) {
		t.Errorf("left in the bucket: %s", f)
	}
}

// TestArchiveURL checks what is refused at once.
func TestArchiveURL(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_ACCESS_KEY", "")
	t.Setenv("AWS_SECRET_KEY", "")
	none := filepath.Join(t.TempDir(), "none")
	t.Setenv("AWS_CONFIG_FILE", none)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", none)
	for archive, kind := range map[string]daytona.Kind{
		"s3://user:geheim@bucket/x":              daytona.KindInvalid,
		"s3://geheim@bucket/x":                   daytona.KindInvalid,
		"s3://user:geheim@buck et/%zz":           daytona.KindInvalid,
		"s3://bucket?secretKey=geheim":           daytona.KindInvalid,
		"s3://bucket?endpoint=http://u:geheim@h": daytona.KindUnauthorized, // nor is it shown where the credentials are missing
		"s3://bucket":                            daytona.KindUnauthorized,
		"gs://bucket":                            daytona.KindInvalid,
	} {
		for name, open := range map[string]func() (*daytona.Client, error){
			"url": func() (*daytona.Client, error) {
				return daytona.Open(t.Context(), "local://"+t.TempDir()+"?archive="+url.QueryEscape(archive))
			},
			"options": func() (*daytona.Client, error) {
				return local.Open(t.Context(), &local.Options{Dir: t.TempDir(), Archive: archive})
			},
		} {
			c, err := open()
			if err == nil {
				c.Close()
			}
			if daytona.KindOf(err) != kind || strings.Contains(err.Error(), "geheim") {
				t.Errorf("%s by %s: %v", archive, name, err)
			}
		}
	}
	_, err := daytona.Open(t.Context(), "local://?archive=s3://bucket&region=x")
	if daytona.KindOf(err) != daytona.KindInvalid || !strings.Contains(err.Error(), "%26") {
		t.Errorf("an & that is not escaped: %v", err)
	}
	profile := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(profile, []byte("[ci]\naws_access_key_id = a\naws_secret_access_key = b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", profile)
	t.Setenv("AWS_PROFILE", "ci")
	c, err := local.Open(t.Context(), &local.Options{Dir: t.TempDir(), Archive: "s3://bucket"})
	if errors.Is(err, daytona.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("with a profile: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestImageLimits checks the options that say which images stay.
func TestImageLimits(t *testing.T) {
	for query, field := range map[string]string{
		"imageMaxAge=-1h": "ImageMaxAge", "imageMaxAge=long": "imageMaxAge", "imageHighWatermark=1.5": "ImageHighWatermark", "imageHighWatermark=NaN": "ImageHighWatermark",
		"imageHighWatermark=x": "imageHighWatermark", "imageHighWatermark=0.8&imageLowWatermark=0.9": "ImageLowWatermark", "imageLowWatermark=0.5": "ImageLowWatermark",
		"imageHighWatermark=0.8&imageLowWatermark=-1": "ImageLowWatermark",
	} {
		c, err := daytona.Open(t.Context(), "local://"+t.TempDir()+"?"+query)
		if err == nil {
			c.Close()
		}
		if e, ok := errors.AsType[*daytona.Error](err); !ok || e.Kind != daytona.KindInvalid || e.Field != field {
			t.Errorf("%s: %v", query, err)
		}
	}
	if _, err := local.Open(t.Context(), &local.Options{Dir: t.TempDir(), ImageHighWatermark: math.NaN()}); daytona.KindOf(err) != daytona.KindInvalid {
		t.Errorf("NaN: %v", err)
	}
}
