// Carries one after the other: the smallest adder there is, and the slowest. Yosys otherwise builds parallel prefixes.
(* techmap_celltype = "$lcu" *)
module _80_lcu_ripple (P, G, CI, CO);
  parameter WIDTH = 2;
  (* force_downto *) input [WIDTH-1:0] P, G;
  input CI;
  (* force_downto *) output [WIDTH-1:0] CO;
  wire [WIDTH:0] carry;
  assign carry[0] = CI;
  genvar i;
  generate
    for (i = 0; i < WIDTH; i = i + 1) begin : position
      assign carry[i+1] = G[i] | (P[i] & carry[i]);
    end
  endgenerate
  assign CO = carry[WIDTH:1];
endmodule
