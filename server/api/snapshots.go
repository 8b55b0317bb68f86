package api

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/snapshot"
)

// silence is how long a log may have nothing to say while it is followed through
// the API, which is the deprecated way.
const silence = 5 * time.Minute

// SnapshotWire is a snapshot as the wire has it.
func SnapshotWire(s *snapshot.Snapshot) wire.Snapshot {
	w := wire.Snapshot{
		ID: s.ID, General: s.General, Name: s.Name, State: string(s.State), Size: s.Size, Entrypoint: s.Entrypoint,
		CPU: float64(s.CPU), GPU: float64(s.GPU), Mem: float64(s.Memory), Disk: float64(s.Disk),
		CreatedAt: wire.Stamp(s.CreatedAt), UpdatedAt: wire.Stamp(s.UpdatedAt), LastUsedAt: wire.StampOf(s.LastUsedAt), RegionIds: s.Regions,
	}
	// What is absent when it is empty, and what is null.
	for to, v := range map[**string]string{
		&w.OrganizationID: s.OrganizationID, &w.ImageName: s.Image, &w.GPUType: s.GPUType, &w.InitialRunnerID: s.RunnerID,
		&w.Ref: s.Ref, &w.SandboxClass: s.Class, &w.ErrorReason: s.Reason, &w.SourceSandboxID: s.Source,
	} {
		if v != "" {
			*to = &v
		}
	}
	if b := s.BuildInfo; b != nil {
		w.BuildInfo = BuildWire(b)
	}
	return w
}

// BuildWire is a build as the wire has it.
func BuildWire(b *snapshot.Build) *wire.BuildInfo {
	return &wire.BuildInfo{DockerfileContent: &b.Dockerfile, ContextHashes: b.ContextHashes, CreatedAt: wire.Stamp(b.CreatedAt), UpdatedAt: wire.Stamp(b.UpdatedAt), SnapshotRef: b.Ref}
}

// oneSnapshot makes an answer of a snapshot.
func oneSnapshot(s *snapshot.Snapshot, err error) (wire.Snapshot, error) {
	if err != nil {
		return wire.Snapshot{}, err
	}
	return SnapshotWire(s), nil
}

// RegisterSnapshots serves the routes of snapshots.
func RegisterSnapshots(a *API, s *snapshot.Service) {
	type byID struct {
		ID string `path:"id"`
	}

	Handle(a, "createSnapshot", func(ctx context.Context, in *struct{ Body wire.CreateSnapshot }) (wire.Snapshot, error) {
		b := in.Body
		q := snapshot.Request{
			OrganizationID: orgID(ctx), Name: b.Name, Entrypoint: b.Entrypoint,
			CPU: b.CPU, GPU: b.GPU, Memory: b.Memory, Disk: b.Disk, GPUTypes: b.GPUType,
		}
		for to, v := range map[*string]*string{&q.Image: b.ImageName, &q.Region: b.RegionID, &q.Class: b.SandboxClass} {
			if v != nil {
				*to = *v
			}
		}
		if b.BuildInfo != nil {
			q.Dockerfile, q.ContextHashes = &b.BuildInfo.DockerfileContent, b.BuildInfo.ContextHashes
		}
		snap, err := s.Create(ctx, q)
		if err == nil {
			Note(ctx, snap.ID, map[string]any{"name": snap.Name, "imageName": snap.Image})
		}
		return oneSnapshot(snap, err)
	})

	Handle(a, "getAllSnapshots", func(ctx context.Context, in *struct {
		Page   int    `query:"page" minimum:"1" maximum:"1000000" default:"1"`
		Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"100"`
		Name   string `query:"name" maxLength:"255"`
		Source string `query:"sourceSandboxId" maxLength:"255"`
		Sort   string `query:"sort" enum:"name,state,lastUsedAt,createdAt" default:"lastUsedAt"`
		Order  string `query:"order" enum:"asc,desc" default:"desc"`
	}) (wire.PaginatedSnapshots, error) {
		list, total, err := s.List(ctx, orgID(ctx), snapshot.Query{Name: in.Name, Source: in.Source, Sort: in.Sort, Ascending: in.Order == "asc", Page: in.Page, Limit: in.Limit})
		if err != nil {
			return wire.PaginatedSnapshots{}, err
		}
		out := wire.PaginatedSnapshots{Items: make([]wire.Snapshot, len(list)), Total: float64(total), Page: float64(in.Page), TotalPages: float64((total + in.Limit - 1) / in.Limit)}
		for i := range list {
			out.Items[i] = SnapshotWire(&list[i])
		}
		return out, nil
	})

	Handle(a, "getSnapshot", func(ctx context.Context, in *byID) (wire.Snapshot, error) {
		return oneSnapshot(s.Get(ctx, orgID(ctx), in.ID))
	})

	Handle(a, "removeSnapshot", func(ctx context.Context, in *byID) (None, error) {
		Note(ctx, in.ID, nil)
		return None{}, s.Delete(ctx, orgID(ctx), in.ID)
	})

	Handle(a, "activateSnapshot", func(ctx context.Context, in *byID) (wire.Snapshot, error) {
		Note(ctx, in.ID, nil)
		return oneSnapshot(s.Activate(ctx, orgID(ctx), in.ID))
	})

	Handle(a, "deactivateSnapshot", func(ctx context.Context, in *byID) (None, error) {
		Note(ctx, in.ID, nil)
		return None{}, s.Deactivate(ctx, orgID(ctx), in.ID)
	})

	Handle(a, "getSnapshotBuildLogsUrl", func(ctx context.Context, in *byID) (wire.URL, error) {
		u, err := s.LogsURL(ctx, orgID(ctx), in.ID)
		return wire.URL{URL: u}, err
	})

	Stream(a, "getSnapshotBuildLogs", func(w http.ResponseWriter, r *http.Request) error {
		follow, _ := strconv.ParseBool(r.URL.Query().Get("follow"))
		log, err := s.Logs(r.Context(), orgID(r.Context()), Param(r, "id"), follow)
		if err != nil {
			return err
		}
		defer log.Close()
		return CopyLog(w, log)
	})

	Handle(a, "adminSetSnapshotGeneralStatus", func(ctx context.Context, in *struct {
		ID   string `path:"id"`
		Body wire.SetSnapshotGeneralStatus
	}) (wire.Snapshot, error) {
		Note(ctx, in.ID, map[string]any{"general": in.Body.General})
		return oneSnapshot(s.SetGeneral(ctx, in.ID, in.Body.General))
	})

	Handle(a, "adminCanCleanupImage", func(ctx context.Context, in *struct {
		Image string `query:"imageName" required:"true" maxLength:"1024"`
	}) (Text, error) {
		ok, err := s.CanCleanup(ctx, in.Image)
		return Text(strconv.FormatBool(ok)), err
	})
}

// CopyLog writes a log as it comes, until it ends or nothing has come for five
// minutes.
func CopyLog(w http.ResponseWriter, log io.ReadCloser) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	c := http.NewResponseController(w)
	c.Flush()
	quiet := time.AfterFunc(silence, func() { log.Close() })
	defer quiet.Stop()
	buf := make([]byte, 32<<10)
	for {
		n, err := log.Read(buf)
		quiet.Reset(silence)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return nil // the client has gone
			}
			c.Flush()
		}
		if err != nil {
			return nil // its end, whatever it is: the answer has begun
		}
	}
}
