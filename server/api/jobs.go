package api

import (
	"context"
	"math"
	"time"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/job"
)

// RegisterJobs serves the queue of jobs to the runners, each its own.
func RegisterJobs(a *API, s *job.Service) {
	type one struct {
		ID string `path:"jobId"`
	}
	Handle(a, "pollJobs", func(ctx context.Context, in *struct {
		Timeout float64 `query:"timeout" default:"30" doc:"Seconds to wait for a job, at most 60"`
		Limit   float64 `query:"limit" default:"10" doc:"Jobs to take, at most 100"`
	}) (*wire.PollJobsResponse, error) {
		wait := time.Duration(min(max(in.Timeout, 0), 60) * float64(time.Second))
		jobs, err := s.Poll(ctx, identity.From(ctx).RunnerID, int(min(max(in.Limit, 1), 100)), wait)
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		return &wire.PollJobsResponse{Jobs: wireJobs(jobs)}, nil
	})
	Handle(a, "listJobs", func(ctx context.Context, in *struct {
		Page   float64 `query:"page" default:"1" minimum:"1"`
		Limit  float64 `query:"limit" default:"100" minimum:"1" maximum:"200"`
		Offset float64 `query:"offset" minimum:"0" doc:"Jobs to skip, in place of page"`
		Status string  `query:"status" enum:"PENDING,IN_PROGRESS,COMPLETED,FAILED"`
	}) (*wire.PaginatedJobs, error) {
		limit, offset := int(in.Limit), int(min(in.Offset, math.MaxInt32))
		if offset == 0 {
			offset = (int(min(in.Page, 1e6)) - 1) * limit
		}
		jobs, total, err := s.List(ctx, identity.From(ctx).RunnerID, job.Filter{Status: job.Status(in.Status), Offset: offset, Limit: limit})
		if err != nil {
			return nil, err
		}
		return &wire.PaginatedJobs{
			Items: wireJobs(jobs), Total: float64(total), Page: float64(offset/limit + 1), TotalPages: math.Ceil(float64(total) / float64(limit)),
		}, nil
	})
	Handle(a, "getJob", func(ctx context.Context, in *one) (*wire.Job, error) {
		j, err := s.Get(ctx, identity.From(ctx).RunnerID, in.ID)
		if err != nil {
			return nil, err
		}
		return new(wireJob(&j)), nil
	})
	Handle(a, "updateJobStatus", func(ctx context.Context, in *struct {
		ID   string `path:"jobId"`
		Body wire.UpdateJobStatus
	}) (*wire.Job, error) {
		u := job.Update{Status: job.Status(in.Body.Status)}
		if in.Body.ErrorMessage != nil {
			u.Error = *in.Body.ErrorMessage
		}
		if in.Body.ResultMetadata != nil {
			u.Result = *in.Body.ResultMetadata
		}
		j, err := s.Update(ctx, identity.From(ctx).RunnerID, in.ID, u)
		if err != nil {
			return nil, err
		}
		return new(wireJob(&j)), nil
	})
}

func wireJobs(jobs []job.Job) []wire.Job {
	out := make([]wire.Job, len(jobs))
	for i := range jobs {
		out[i] = wireJob(&jobs[i])
	}
	return out
}

func wireJob(j *job.Job) wire.Job {
	w := wire.Job{
		ID: j.ID, Type: j.Type, Status: string(j.Status), ResourceType: j.ResourceType, ResourceID: j.ResourceID,
		CreatedAt: wire.Stamp(j.CreatedAt), UpdatedAt: new(wire.Stamp(j.UpdatedAt)),
	}
	if j.Payload != "" {
		w.Payload = &j.Payload
	}
	if j.Error != "" {
		w.ErrorMessage = &j.Error
	}
	if len(j.Trace) > 0 {
		w.TraceContext = map[string]any{}
		for k, v := range j.Trace {
			w.TraceContext[k] = v
		}
	}
	return w
}
