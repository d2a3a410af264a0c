package monitor

import (
	"context"

	"holdfast.example/interop/conmon"
)

// Namespace is one that the monitor holds.
type Namespace struct {
	Type conmon.Conmon_Namespace
	Path string
}

// CreateNamespaces makes namespaces of these types for a pod and pins them below a base path.
func (m *Monitor) CreateNamespaces(
	ctx context.Context, pod, base string, types []conmon.Conmon_Namespace, uids, gids []string,
) (namespaces []Namespace, err error) {
	err = m.call(func(api conmon.Conmon) error {
		future, release := api.CreateNamespaces(ctx, func(params conmon.Conmon_createNamespaces_Params) error {
			request, err := params.NewRequest()
			if err != nil {
				return err
			}
			kinds, err := request.NewNamespaces(int32(len(types)))
			if err != nil {
				return err
			}
			for i, kind := range types {
				kinds.Set(i, kind)
			}
			return first(
				request.SetPodId(pod), request.SetBasePath(base),
				list(uids, request.NewUidMappings), list(gids, request.NewGidMappings),
			)
		})
		defer release()
		results, err := future.Struct()
		if err != nil {
			return err
		}
		response, err := results.Response()
		if err != nil {
			return err
		}
		all, err := response.Namespaces()
		if err != nil {
			return err
		}
		for i := range all.Len() {
			path, err := all.At(i).Path()
			if err != nil {
				return err
			}
			namespaces = append(namespaces, Namespace{all.At(i).Type(), path})
		}
		return nil
	})
	return namespaces, err
}
