"""A compiled program in forms that the CPU's compiler does not write.

GPU: a collective as "-start" and "-done". TPU: a gather woven into fusions, a
reduce-scatter as a fusion, groups as axes of a mesh, a loop without its number
of turns, on-chip memory.
"""

GPU_AND_TPU = """HloModule step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%begin (p: bf16[64]) -> (bf16[64], bf16[512], u32[]) {
  %p = bf16[64]{0} parameter(0)
  %gather.1 = bf16[512]{0} all-gather(%p), replica_groups=mesh['x'=4,'y'=2] \
{'x','y'}, dimensions={0}, backend_config={"async_collective_fusion_config":\
{"flag_start":"-1","flag_end":"-1"}}
  %flag = u32[]{:S(2)} constant(0)
  ROOT %parts = (bf16[64]{0}, bf16[512]{0}, u32[]{:S(2)}) tuple(%p, %gather.1, \
/*index=2*/%flag)
}

%go_on (p.1: bf16[64], q.1: bf16[512], f: u32[]) -> bf16[512] {
  %p.1 = bf16[64]{0} parameter(0)
  %q.1 = bf16[512]{0} parameter(1)
  %f = u32[]{:S(2)} parameter(2)
  ROOT %gather.2 = bf16[512]{0} all-gather(%p.1), replica_groups=mesh['x'=4,\
'y'=2] {'x','y'}, dimensions={0}, backend_config={\
"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

%scatter (input: f32[32,8]) -> f32[16,8] {
  %input = f32[32,8]{1,0} parameter(0)
  %all = f32[32,8]{1,0} all-reduce(%input), replica_groups=mesh['x'=4,'y'=2] \
{'y'}, to_apply=%sum
  %zero = u32[] constant(0)
  ROOT %mine = f32[16,8]{1,0} dynamic-slice(%all, %zero, %zero), \
dynamic_slice_sizes={16,8}
}

%body (state: (s32[], f32[32,8], s32[])) -> (s32[], f32[32,8], s32[]) {
  %state = (s32[]{:T(128)}, f32[32,8]{1,0:T(8,128)S(1)}, s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[32,8]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %stride = s32[] get-tuple-element(%state), index=2
  %next = s32[]{:T(128)} subtract(%i, %stride)
  %sums = (f32[32,8]{1,0:S(1)}, f32[32,8]{1,0:S(1)}) all-reduce-start(%x, %x), \
replica_groups=[2,4]<=[8], to_apply=%sum
  %summed = (f32[32,8]{1,0:S(1)}, f32[32,8]{1,0:S(1)}) all-reduce-done(%sums)
  %first = f32[32,8]{1,0:S(1)} get-tuple-element(%summed), index=0
  ROOT %after = (s32[], f32[32,8]{1,0:S(1)}, s32[]) tuple(%next, %first, \
%stride)
}

%goes_on (state.1: (s32[], f32[32,8], s32[])) -> pred[] {
  %state.1 = (s32[], f32[32,8]{1,0:S(1)}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(-4)
  ROOT %lower = pred[] compare(%end, %i.1), direction=LT
}

ENTRY %main (in: bf16[64], x.1: f32[32,8]) -> f32[16,8] {
  %in = bf16[64]{0} parameter(0)
  %x.1 = f32[32,8]{1,0} parameter(1)
  %start = (bf16[64]{0}, bf16[512]{0}, u32[]{:S(2)}) fusion(%in), \
kind=kCustom, calls=%begin
  %s.0 = bf16[64]{0} get-tuple-element(%start), index=0
  %s.1 = bf16[512]{0} get-tuple-element(%start), index=1
  %s.2 = u32[]{:S(2)} get-tuple-element(%start), index=2
  %done = bf16[512]{0} fusion(%s.0, %s.1, %s.2), kind=kCustom, calls=%go_on
  %six = s32[] constant(6)
  %two = s32[] constant(2)
  %copied = s32[] copy(%six)
  %chip = f32[32,8]{1,0:T(8,128)S(1)} copy(%x.1)
  %before = (s32[], f32[32,8]{1,0:S(1)}, s32[]) tuple(%copied, %chip, %two)
  %loop = (s32[], f32[32,8]{1,0:S(1)}, s32[]) while(%before), \
condition=%goes_on, body=%body
  %y = f32[32,8]{1,0:S(1)} get-tuple-element(%loop), index=1
  ROOT %out = f32[16,8]{1,0} fusion(%y), kind=kCustom, calls=%scatter
}
"""
